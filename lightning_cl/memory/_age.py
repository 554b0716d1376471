"""Which samples have become too old, found without looking at the others."""

from collections import deque

import torch
from torch import Tensor

from lightning_cl.memory._index import longs


class AgeQueue:
    """Samples in the order in which they were offered. Entries of samples that have left are skipped."""

    def __init__(self) -> None:
        self._entries: deque[tuple[Tensor, Tensor]] = deque()

    def push(self, born: Tensor, rows: Tensor) -> None:
        """These samples are newer than all before."""
        if len(rows):
            order = born.argsort()
            self._entries.append((born[order], rows[order]))

    def pop(self, before: int) -> tuple[Tensor, Tensor]:
        """(born, rows) of entries born before this time."""
        borns, rows = [longs()], [longs()]
        while self._entries and int(self._entries[0][0][0]) < before:
            born, row = self._entries.popleft()
            n = int(torch.searchsorted(born, before))
            borns.append(born[:n])
            rows.append(row[:n])
            if n < len(born):
                self._entries.appendleft((born[n:], row[n:]))
        return torch.cat(borns), torch.cat(rows)
