"""What the metrics over the accuracy matrix share: the matrix, filled row by row."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_cl.errors import InputError
from lightning_cl.functional.accuracy_matrix import Vector, as_vector


class MatrixMetric(Metric):
    """Keeps ``R``; a subclass turns it into a number in ``_from_matrix``.

    State: ``matrix``, (T, T) float64 with NaN where not evaluated; it grows with the stream. The accuracies handed in
    are taken as final (already reduced over processes), so nothing is synchronised.
    """

    full_state_update = True
    matrix: Tensor

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("sync_on_compute", False)
        super().__init__(**kwargs)
        self.add_state("matrix", default=torch.empty(0, 0, dtype=torch.float64), dist_reduce_fx=None)

    def update(self, task_learned: int, accuracies: Vector) -> None:
        """Fill row ``task_learned``.

        Args:
            task_learned: The task just learned, 0-based. A row may be written again.
            accuracies: The metric on tasks 0, 1, ...; NaN or None where not evaluated, missing ones at the end too.

        Raises:
            InputError: if ``task_learned`` is negative, or ``accuracies`` is not a row.
        """
        row = as_vector(accuracies)
        if task_learned < 0 or row.dim() != 1:
            raise InputError(
                f"task_learned={task_learned!r} with accuracies of shape {tuple(row.shape)}",
                "a task number >= 0 and one accuracy per task",
                "call update(task, [accuracy on task 0, accuracy on task 1, ...])",
            )
        size = max(task_learned + 1, len(row), len(self.matrix))
        matrix = self.matrix.new_full((size, size), math.nan)
        matrix[: len(self.matrix), : len(self.matrix)] = self.matrix
        matrix[task_learned] = math.nan
        matrix[task_learned, : len(row)] = row.to(matrix)
        self.matrix = matrix

    def compute(self) -> Tensor:
        """The number after the last task that has a row; a scalar, NaN where undefined."""
        learned = (~self.matrix.isnan()).any(dim=1).nonzero()
        if len(learned) == 0:
            return torch.tensor(math.nan)
        size = int(learned.max()) + 1
        return torch.tensor(self._from_matrix(self.matrix[:size, :size]))

    def _from_matrix(self, matrix: Tensor) -> float:
        raise NotImplementedError
