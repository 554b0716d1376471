"""What earlier tasks did for later ones before they were learned."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.accuracy_matrix import Vector, as_vector, forward_transfer
from lightning_cl.metrics._matrix_metric import MatrixMetric


class ForwardTransfer(MatrixMetric):
    r"""What earlier tasks did for later ones before they were learned.

    .. math:: \frac{1}{T-1} \sum_{j \ge 1} (R_{j-1,j} - b_j)

    FWT of Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory". Higher is better; NaN for one task, and when the
    next task was not evaluated before it was learned.
    State: the accuracy matrix (T, T), one row per :meth:`update`, and ``random_init``.

    Args:
        random_init: ``b``: the untrained model's metric on each task of the stream, at least as many as are learned.
        kwargs: Those of ``torchmetrics.Metric``.

    Example:
        >>> metric = ForwardTransfer(random_init=[0.5, 0.5])
        >>> metric.update(0, [0.9, 0.6])
        >>> metric.update(1, [0.5, 0.8])
        >>> metric.compute()
        tensor(0.1000)
    """

    higher_is_better = True
    random_init: Tensor

    def __init__(self, random_init: Vector, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("random_init", default=torch.clone(as_vector(random_init)), dist_reduce_fx=None)

    def _from_matrix(self, matrix: Tensor) -> float:
        return forward_transfer(matrix, self.random_init[: len(matrix)])
