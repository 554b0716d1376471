"""Which rows of a head belong to which task, and which of them count."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.masking import mask_logits


def rows_with(known: Sequence[str], tasks: Sequence[Any], *, fixed: bool) -> list[str]:
    """Names of a head's rows once it has the classes of the tasks, whose labels have to be these rows.

    Args:
        known: Names of the rows that there are.
        tasks: Tasks with ``class_indices`` and ``classes``.
        fixed: Whether there may be no others.

    Raises:
        InputError: For a new class of a fixed head, or labels in another order than the rows.
    """
    names = {i: name for task in tasks for i, name in zip(task.class_indices, task.classes, strict=True)}
    rows = list(dict.fromkeys([*known, *(names[i] for i in sorted(names))]))
    if fixed and len(rows) > len(known):
        raise InputError(f"new classes {rows[len(known) :]}", "classes of the fixed head", "use head='growing'")
    for i, name in names.items():
        if rows[i : i + 1] != [name]:
            raise InputError(
                f"class {name!r} is label {i} of the data and row {rows.index(name)} of the head",
                f"labels in the order of the head's rows, {rows}",
                "give the stream's classes in that order, or start from a head without rows",
            )
    return rows


class ActiveClasses:
    """Masks over the rows of a head: they follow from the tasks, so that no checkpoint holds them.

    Args:
        tasks: Rows of each task so far.
        n: Rows there are.
    """

    def __init__(self, tasks: Sequence[Sequence[int]], n: int) -> None:
        self.table = torch.zeros(max(1, len(tasks)), n, dtype=torch.bool)
        self.task_of = torch.full((n,), -1)
        for t, members in enumerate(tasks):
            self.table[t, members] = True
            self.task_of[members] = t
        self.seen = self.table.any(0) if tasks else torch.ones(n, dtype=torch.bool)
        self._all_seen = bool(self.seen.all())

    @property
    def rows(self) -> list[int]:
        """Rows of the classes of the tasks so far; all where no task is known."""
        return self.seen.nonzero().flatten().tolist()

    def mask(self, logits: Tensor, active: str, *, y: Tensor | None = None, task: Tensor | None = None) -> Tensor:
        """Logits (N, C) in which only ``"all"`` classes, those ``"seen"``, or those of the sample's ``"task"`` count.

        The task of a sample is that of ``task`` (N,), else that of its label ``y`` (N,).
        """
        if active == "all" or (active == "seen" and self._all_seen):
            return logits
        if self.seen.device != logits.device:
            self.table, self.task_of, self.seen = (
                held.to(logits.device) for held in (self.table, self.task_of, self.seen)
            )
        if active == "seen":
            return mask_logits(logits, self.seen)
        if task is None:
            if y is None:
                raise InputError("a batch without task ids", "(x, y, task)", "use stream.scenario=task_incremental")
            task = self.task_of[y]
        return mask_logits(logits, self.table[task])
