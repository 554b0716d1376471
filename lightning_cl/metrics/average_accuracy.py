"""Mean accuracy over all tasks after the last one learned."""

from torch import Tensor

from lightning_cl.functional.accuracy_matrix import average_accuracy
from lightning_cl.metrics._matrix_metric import MatrixMetric


class AverageAccuracy(MatrixMetric):
    r"""Mean accuracy over all tasks after the last one learned.

    .. math:: \frac{1}{T} \sum_j R_{T-1, j}

    ACC of Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory". Higher is better.
    State: the accuracy matrix (T, T), one row per :meth:`update`.

    Example:
        >>> metric = AverageAccuracy()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(0.6500)
    """

    higher_is_better = True

    def _from_matrix(self, matrix: Tensor) -> float:
        return average_accuracy(matrix)
