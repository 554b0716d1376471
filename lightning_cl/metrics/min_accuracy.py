"""Worst accuracy on earlier tasks since they were learned (stability gap)."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_cl.functional.accuracy_matrix import Vector, as_vector, min_accuracy


class MinAccuracy(Metric):
    r"""Worst accuracy on earlier tasks since they were learned (stability gap), from evaluations every n steps.

    .. math:: \frac{1}{k-1} \sum_{i < k} \min_{n > t_i} A(E_i, f_n)

    min-ACC of De Lange, van de Ven & Tuytelaars 2023, "Continual evaluation for lifelong learning: identifying the
    stability gap". Higher is better; NaN until a second task is being learned.
    State: ``worst``, one running minimum per earlier task, however many evaluations there are. Accuracies are taken
    as final (already reduced over processes), so nothing is synchronised.

    Example:
        >>> metric = MinAccuracy()
        >>> metric.update(0, [0.9])
        >>> metric.update(1, [0.4, 0.2])
        >>> metric.update(1, [0.7, 0.8])
        >>> metric.compute()
        tensor(0.4000)
    """

    full_state_update = True
    higher_is_better = True
    worst: Tensor

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("sync_on_compute", False)
        super().__init__(**kwargs)
        self.add_state("worst", default=torch.empty(0, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, task: int, accuracies: Vector) -> None:
        """Take in one evaluation made while ``task`` (0-based) was being learned.

        Args:
            task: The task being learned; only tasks before it count.
            accuracies: The metric on tasks 0, 1, ...; NaN or None where not evaluated.
        """
        row = as_vector(accuracies)[:task].to(self.worst)
        worst = self.worst.new_full((max(task, len(self.worst)),), math.nan)
        worst[: len(self.worst)] = self.worst
        # fmin takes the number where the other is NaN, that is, not evaluated yet
        worst[: len(row)] = torch.fmin(worst[: len(row)], row)
        self.worst = worst

    def compute(self) -> Tensor:
        """Mean over earlier tasks; a scalar, NaN where one was never evaluated since it was learned."""
        return torch.tensor(min_accuracy([len(self.worst)], [self.worst]))
