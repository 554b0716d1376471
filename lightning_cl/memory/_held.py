"""What a memory holds, and how it is read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf
from lightning_cl.memory._references import References
from lightning_cl.memory._table import Table

#: Names of columns, or what they begin with.
LEAF, EXTRA, LABELS, IDS = "leaf:", "extra:", "labels", "ids"


class Held:
    """The samples of a memory by their slots, ``0 .. len - 1``.

    Args:
        folder, keep_states: See :class:`~lightning_cl.memory._table.Table`.
        references: Whether only (task, index) is stored.
    """

    def __init__(self, folder: Path | None, keep_states: int, *, references: bool) -> None:
        self._table = Table(folder, keep_states)
        self._references = References() if references else None

    def __len__(self) -> int:
        """Samples held now."""
        return self._table.index.length

    def belongs_to(self, run_dir: Path, name: str) -> None:
        """Say that the states of this memory are kept in this run folder, for a callback of this name: started anew
        there, it takes over its own folder.
        """
        if self._table.owner is not None:
            self._table.owner.run, self._table.owner.name = run_dir, name

    def check_place(self) -> None:
        """See that the folder of a memory on disk is its own.

        Raises:
            InputError: If it is another memory's.
        """
        if self._table.owner is not None:
            self._table.owner.check_new()

    @property
    def stores_references(self) -> bool:
        """Whether samples are read again from their data sets."""
        return self._references is not None

    @property
    def labels(self) -> Tensor | None:
        """Labels of the samples held, (len,); None if none were given."""
        found = self._table.at(LABELS, slice(None)).get("")
        return found if isinstance(found, Tensor) else None

    @property
    def ids(self) -> Leaf | None:
        """Ids of the samples held; None if they have none."""
        return self._table.at(IDS, slice(None)).get("")

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        return self._table.nbytes

    def at(self, slots: Tensor | slice) -> dict[str, Leaf]:
        """The leaves of the samples in these slots, ``0 .. len - 1``; slots hold until the next :meth:`add`."""
        found = self._table.at(LEAF, slots)
        if self._references is None:
            return found
        return self._references.read(found["task"], found["index"]) if found else {}  # type: ignore[arg-type]

    def extras(self, slots: Tensor | slice) -> dict[str, Tensor]:
        """The extras of the samples in these slots, (n, ...) each."""
        return self._table.at(EXTRA, slots)  # type: ignore[return-value]

    def bind(self, task: int, data: Any, collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        """For references: the data of a task, with ``batch(indices)`` or as a map-style data set.

        Raises:
            InputError: If they are not the data that the memory refers to, or the memory stores samples.
        """
        if self._references is None:
            raise InputError("bind() on a memory of samples", "stores='references'", "leave bind out")
        self._references.bind(task, data, collate_fn)

    def read(self, task: int, indices: Tensor) -> dict[str, Leaf]:
        """For references: the leaves of these samples of a task's data."""
        assert self._references is not None
        return self._references.read(torch.full((len(indices),), task), indices)

    def require_bound(self) -> None:
        """For references: see that the data of every sample held are there.

        Raises:
            InputError: If those of a task are not.
        """
        if self._references is not None and len(self):
            for task in self._table.at(LEAF + "task", slice(None))[""].unique().tolist():  # type: ignore[union-attr]
                self._references.require(task)

    def is_bound(self, task: int) -> bool:
        """Whether the data of a task are there."""
        return self._references is not None and self._references.is_bound(task)
