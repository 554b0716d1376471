"""What learning later tasks did to earlier ones."""

from torch import Tensor

from lightning_cl.functional.accuracy_matrix import backward_transfer
from lightning_cl.metrics._matrix_metric import MatrixMetric


class BackwardTransfer(MatrixMetric):
    r"""What learning later tasks did to earlier ones.

    .. math:: \frac{1}{T-1} \sum_{j<T-1} (R_{T-1,j} - R_{jj})

    BWT of Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory". Higher is better; negative under
    forgetting; NaN for one task.
    State: the accuracy matrix (T, T), one row per :meth:`update`.

    Example:
        >>> metric = BackwardTransfer()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(-0.4000)
    """

    higher_is_better = True

    def _from_matrix(self, matrix: Tensor) -> float:
        return backward_transfer(matrix)
