"""Mean accuracy on each task right after learning it (plasticity)."""

from torch import Tensor

from lightning_cl.functional.accuracy_matrix import learning_accuracy
from lightning_cl.metrics._matrix_metric import MatrixMetric


class LearningAccuracy(MatrixMetric):
    r"""Mean accuracy on each task right after learning it (plasticity).

    .. math:: \frac{1}{T} \sum_j R_{jj}

    LA of Riemer et al. 2019, "Learning to Learn without Forgetting" (MER). Higher is better.
    State: the accuracy matrix (T, T), one row per :meth:`update`.

    Example:
        >>> metric = LearningAccuracy()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(0.8500)
    """

    higher_is_better = True

    def _from_matrix(self, matrix: Tensor) -> float:
        return learning_accuracy(matrix)
