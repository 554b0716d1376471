"""Which rows of a table hold samples, without ever moving a row."""

from collections import deque
from typing import Any

import torch
from torch import Tensor


def longs(n: int = 0) -> Tensor:
    """An empty long tensor of n entries."""
    return torch.empty(n, dtype=torch.long)


def grown(tensor: Tensor, needed: int, most: int | None = None) -> Tensor:
    """The tensor with at least ``needed`` entries, the new ones -1; by doubling, beyond ``most`` only where needed."""
    if needed <= len(tensor):
        return tensor
    twice = 2 * len(tensor)
    larger = tensor.new_full((max(needed, twice if most is None else min(twice, most)),), -1)
    larger[: len(tensor)] = tensor
    return larger


class RowIndex:
    """Numbers the samples held ``0 .. length-1`` (slots), wherever their rows are. Every call costs O(its rows).

    Args:
        keep_states: Rows that one of the last so many states refers to are not written again (for tables on disk, that
            are no part of the state): new contents go to other rows.
    """

    def __init__(self, keep_states: int = 0) -> None:
        self.keep_states = keep_states
        self.length = self.made = 0
        self._rows, self._slots, self.stamps = longs(), longs(), longs()
        self._free: deque[Tensor] = deque()
        self._retired: deque[tuple[int, Tensor]] = deque()
        self._came_free: list[Tensor] = []
        self._serial = self._marked = self._states = 0

    def rows(self, slots: Tensor | slice) -> Tensor:
        """Rows of the samples in these slots."""
        return self._rows[: self.length][slots] if isinstance(slots, slice) else self._rows.index_select(0, slots)

    def slots(self, rows: Tensor) -> Tensor:
        """Slots of samples in these rows; -1 (no row) stays -1."""
        return torch.where(rows < 0, rows, self._slots[rows.clamp(min=0)]) if self.made else rows.clone()

    def take(self, n: int) -> Tensor:
        """Rows for n more samples, which get the next slots."""
        rows = self._allocate(n)
        end = self.length + n
        self._rows = grown(self._rows, end)
        self._rows[self.length : end] = rows
        self._slots[rows] = torch.arange(self.length, end)
        self.length = end
        return rows

    def rewrite(self, rows: Tensor) -> Tensor:
        """Where the new contents of the samples in ``rows`` go: there, unless a state refers to what is there."""
        if not self.keep_states:
            return rows
        referred = self.stamps[rows] < self._marked
        self._stamp(rows[~referred])
        if not referred.any():
            return rows
        old = rows[referred]
        fresh = self._allocate(len(old))
        slots = self._slots[old]
        self._rows[slots], self._slots[fresh], self._slots[old] = fresh, slots, -1
        self._retired.append((self._states, old))
        return rows.masked_scatter(referred, fresh)

    def drop(self, rows: Tensor) -> None:
        """These samples are no longer held; the last slots move into the gaps."""
        if len(rows) == 0:
            return
        slots, end = self._slots[rows], self.length - len(rows)
        stays = torch.ones(len(rows), dtype=torch.bool)
        stays[slots[slots >= end] - end] = False
        movers, gaps = self._rows[end : self.length][stays], slots[slots < end].sort().values
        self._rows[gaps], self._slots[movers] = movers, gaps
        self._slots[rows] = -1
        self.length = end
        if self.keep_states:
            referred = self.stamps[rows] < self._marked
            if referred.any():
                self._retired.append((self._states, rows[referred]))
                rows = rows[~referred]
        if len(rows):
            self._free.append(rows)
            self._came_free.append(rows)

    def came_free(self) -> Tensor:
        """Rows that nothing refers to since the last call: they still hold what was there."""
        rows = torch.cat(self._came_free) if self._came_free else longs()
        self._came_free = []
        return rows

    def mark(self) -> None:
        """A state that refers to the present rows has been taken."""
        if self._marked != self._serial:
            self._marked = self._serial
            self._states += 1

    def _allocate(self, n: int) -> Tensor:
        while self._retired and self._retired[0][0] <= self._states - self.keep_states:
            self._free.append(self._retired.popleft()[1])
        parts = [longs()]
        missing = n
        while missing and self._free:
            chunk = self._free.pop()
            if len(chunk) > missing:
                self._free.append(chunk[missing:])
                chunk = chunk[:missing]
            parts.append(chunk)
            missing -= len(chunk)
        if missing:
            parts.append(torch.arange(self.made, self.made + missing))
            self.made += missing
            self._slots = grown(self._slots, self.made)
            self.stamps = grown(self.stamps, self.made) if self.keep_states else self.stamps
        rows = torch.cat(parts)
        self._stamp(rows)
        return rows

    def _stamp(self, rows: Tensor) -> None:
        if self.keep_states and len(rows):
            self.stamps[rows] = torch.arange(self._serial, self._serial + len(rows))
            self._serial += len(rows)

    def state_dict(self) -> dict[str, Any]:
        """Where everything is, for tables that are no part of the state."""
        self.mark()
        return {
            "rows": self.rows(slice(None)).clone(),
            "stamps": self.stamps[: self.made].clone(),
            "free": [chunk.clone() for chunk in self._free],
            "retired": [[states, rows.clone()] for states, rows in self._retired],
            "numbers": [self.made, self._serial, self._states],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self._rows, self.stamps = state["rows"].clone(), state["stamps"].clone()
        self.made, self._serial, self._states = state["numbers"]
        self._marked, self.length = self._serial, len(self._rows)
        self._slots = torch.full((self.made,), -1)
        self._slots[self._rows] = torch.arange(self.length)
        self._free = deque(chunk.clone() for chunk in state["free"])
        self._retired = deque((states, rows.clone()) for states, rows in state["retired"])
        self._came_free = []
