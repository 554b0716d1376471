"""The samples of a memory as rows of named columns, in RAM or in files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, select_leaf
from lightning_cl.memory._disk import DiskRows
from lightning_cl.memory._index import RowIndex, longs
from lightning_cl.memory._owner import Owner
from lightning_cl.memory._rows import ListRows, Rows, TensorRows

#: Column of files that says which write a row is from; GONE where it was deleted.
STAMP, GONE = "stamp", -1
#: Column that says when a sample was offered. It outlives a deletion, which a state from before has to repeat.
BORN = "born"


class Table:
    """Columns that share one index of rows.

    Args:
        folder: Where the files of tensor columns are; None for a table in RAM. Other processes than the first get
            folders of their own within it. Columns of strings and the like are always in RAM.
        keep_states: See :class:`~lightning_cl.memory._index.RowIndex`; for files.
    """

    def __init__(self, folder: Path | None, keep_states: int) -> None:
        self.folder = folder
        self.owner = None if folder is None else Owner(folder)
        self.index = RowIndex(keep_states if folder is not None else 0)
        self.columns: dict[str, Rows] = {}

    def check(self, values: Mapping[str, Leaf]) -> None:
        """Refuse values of another kind than those that are there."""
        for name, leaf in values.items():
            if name in self.columns:
                self.columns[name].check(leaf)

    def write(self, rows: Tensor, positions: Tensor, values: Mapping[str, Leaf], size: int) -> None:
        """Put the values at ``positions`` into ``rows``, and wipe the rows that have come free."""
        self.wipe(self.index.came_free())
        if self.folder is not None:
            values = {**values, STAMP: torch.empty(0, dtype=torch.long)}
        for name, leaf in values.items():
            if name not in self.columns:
                self.columns[name] = self._column(name, leaf)
            if name == STAMP:
                chosen: Leaf = self.index.stamps[rows]
            elif isinstance(leaf, Tensor) and leaf.is_cpu:
                chosen = leaf.index_select(0, positions)  # faster than indexing
            else:
                chosen = select_leaf(leaf, positions)
            self.columns[name].put(rows, chosen, self.index.made, size)

    def at(self, prefix: str, slots: Tensor | slice) -> dict[str, Leaf]:
        """Name without the prefix -> values of the samples in these slots, for columns with this prefix."""
        columns = {name: column for name, column in self.columns.items() if name.startswith(prefix)}
        rows = self.index.rows(slots) if columns else longs()
        return {name.removeprefix(prefix): column.at(rows) for name, column in columns.items()}

    def names(self, prefix: str) -> list[str]:
        """Names of the columns with this prefix, without it."""
        return [name.removeprefix(prefix) for name in self.columns if name.startswith(prefix)]

    def everywhere(self, name: str) -> Leaf:
        """A column's values in all rows that were ever used, held or not."""
        return self.columns[name].at(torch.arange(self.index.made))

    def wipe(self, rows: Tensor, *, deleted: bool = False) -> None:
        """Overwrite rows; ``deleted`` also for states that refer to them."""
        for name, column in self.columns.items() if rows.shape[0] else ():
            if not (deleted and name == BORN):
                column.wipe(rows)
        stamp = self.columns.get(STAMP)
        if deleted and isinstance(stamp, TensorRows):
            stamp.data[rows] = GONE
            self.flush()

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        rows = self.index.rows(slice(None))
        return sum(column.nbytes(rows) for name, column in self.columns.items() if name != STAMP)

    def flush(self) -> None:
        """Wait until the disk has everything."""
        for column in self.columns.values():
            if isinstance(column, DiskRows):
                column.flush()

    def state_dict(self) -> dict[str, Any]:
        """All columns in the order of slots; of files only where each sample is."""
        if self.folder is None:
            return {"columns": self.at("", slice(None))}
        index = self.index.state_dict()
        self.flush()
        lists = {name: column for name, column in self.columns.items() if isinstance(column, ListRows)}
        assert self.owner is not None
        return {
            "owner": self.owner.token,
            "columns": {name: column.at(self.index.rows(slice(None))) for name, column in lists.items()},
            "files": {
                name: [str(column.data.dtype).removeprefix("torch."), list(column.data.shape[1:])]
                for name, column in self.columns.items()
                if isinstance(column, TensorRows)
            },
            "index": index,
        }

    def load_state_dict(self, state: dict[str, Any], size: int) -> Tensor:
        """Read what :meth:`state_dict` returned; slots of samples that have been deleted since.

        Raises:
            InputError: If files are missing or another memory's, or rows have been written again since.
        """
        if self.owner is not None:
            self.owner.check_loaded(state.get("owner"), empty=state["index"]["numbers"][0] == 0)
        self.columns = {}
        files = state.get("files", {})
        if "index" in state:
            self.index.load_state_dict(state["index"])
        else:
            self.index = RowIndex()
            self.index.take(next((len(leaf) for leaf in state["columns"].values()), 0))
        rows = self.index.rows(slice(None))
        for name, leaf in state["columns"].items():
            self.columns[name] = TensorRows(_path(name), leaf) if isinstance(leaf, Tensor) else ListRows()
            self.columns[name].put(rows, leaf, self.index.made, size)
        for name, (dtype, shape) in files.items():
            assert self.owner is not None
            like = torch.empty((0, *shape), dtype=getattr(torch, dtype))
            folder = self.owner.own_folder
            self.columns[name] = DiskRows(_path(name), like, folder, name, existing=self.index.made > 0)
        if STAMP not in files:
            return rows[:0]
        found = self.columns[STAMP]
        assert isinstance(found, TensorRows)
        if len(rows) and int(rows.max()) >= len(found.data):
            found._grow(int(rows.max()) + 1)
        stamps = found.at(rows)
        gone = stamps == GONE
        changed = int(((stamps != self.index.stamps[rows]) & ~gone).sum())
        if changed:
            raise InputError(
                f"{changed} of {len(rows)} samples in {str(self.folder)!r} have been replaced since this state",
                f"one of the last {self.index.keep_states} states that were saved",
                "resume from a later checkpoint, or make the memory with a larger keep_states",
            )
        return gone.nonzero().flatten()

    def _column(self, name: str, leaf: Leaf) -> Rows:
        if not isinstance(leaf, Tensor):
            return ListRows()
        if self.owner is None:
            return TensorRows(_path(name), leaf)
        self.owner.claim()
        return DiskRows(_path(name), leaf, self.owner.own_folder, name)


def _path(name: str) -> str:
    """What a column is called in messages: the leaf's own path."""
    return name.removeprefix("leaf:")
