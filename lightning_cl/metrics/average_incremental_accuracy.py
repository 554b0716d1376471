"""Mean over tasks of the average accuracy so far."""

from torch import Tensor

from lightning_cl.functional.accuracy_matrix import average_incremental_accuracy
from lightning_cl.metrics._matrix_metric import MatrixMetric


class AverageIncrementalAccuracy(MatrixMetric):
    r"""Mean over tasks of the average accuracy so far.

    .. math:: \frac{1}{T} \sum_i \frac{1}{i+1} \sum_{j \le i} R_{ij}

    Rebuffi et al. 2017, "iCaRL"; every task counts alike. Higher is better.
    State: the accuracy matrix (T, T), one row per :meth:`update`.

    Example:
        >>> metric = AverageIncrementalAccuracy()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(0.7750)
    """

    higher_is_better = True

    def _from_matrix(self, matrix: Tensor) -> float:
        return average_incremental_accuracy(matrix)
