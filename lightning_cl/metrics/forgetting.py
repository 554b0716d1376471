"""How far each earlier task fell from its best."""

from torch import Tensor

from lightning_cl.functional.accuracy_matrix import forgetting
from lightning_cl.metrics._matrix_metric import MatrixMetric


class Forgetting(MatrixMetric):
    r"""How far each earlier task fell from its best.

    .. math:: \frac{1}{T-1} \sum_{j<T-1} (\max_{i<T-1} R_{ij} - R_{T-1,j})

    Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning". Lower is better; NaN for one task.
    State: the accuracy matrix (T, T), one row per :meth:`update`.

    Example:
        >>> metric = Forgetting()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(0.4000)
    """

    higher_is_better = False

    def _from_matrix(self, matrix: Tensor) -> float:
        return forgetting(matrix)
