"""Rows of one leaf of the stored batches: a tensor that grows in both directions, or a list."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, common_shape, pad_to, select_leaf


class TensorRows:
    """CPU rows of one dtype; grows by doubling, and pads all rows when longer ones arrive (token batches)."""

    def __init__(self, path: str, like: Tensor) -> None:
        self.path = path
        self.data = torch.empty((0, *like.shape[1:]), dtype=like.dtype)

    def put(self, slots: Tensor, rows: Leaf, size: int) -> None:
        """Write ``rows`` into ``slots``, all below ``size``."""
        if not isinstance(rows, Tensor) or (
            rows.dtype != self.data.dtype and not (rows.is_floating_point() and self.data.is_floating_point())
        ):
            given = rows.dtype if isinstance(rows, Tensor) else "a list"
            raise InputError(
                f"leaf {self.path!r} of {given} for a memory of {self.data.dtype}",
                "the same kind of batch in every task",
                "give each kind of batch its own Replay(name=...)",
            )
        if rows.shape[1:] != self.data.shape[1:]:
            shape = common_shape(self.path, self.data.shape[1:], rows.shape[1:])
            self.data, rows = pad_to(self.path, self.data, shape), pad_to(self.path, rows, shape)
        if len(slots) == 0:
            return
        needed = int(slots.max()) + 1
        if needed > len(self.data):
            grown = self.data.new_empty((max(needed, min(size, 2 * len(self.data))), *self.data.shape[1:]))
            grown[: len(self.data)] = self.data
            self.data = grown
        self.data[slots] = rows.to(device="cpu", dtype=self.data.dtype)

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows; the two do not overlap."""
        self.data[target] = self.data[source]

    def at(self, slots: Tensor | slice) -> Tensor:
        """Rows, as a copy."""
        return self.data[slots].clone() if isinstance(slots, slice) else self.data[slots]

    def nbytes(self, length: int) -> int:
        """Bytes of the first ``length`` rows."""
        return self.data[:length].nbytes


class ListRows:
    """Rows that are not tensors: strings, numbers, one dict per sample."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def put(self, slots: Tensor, rows: Leaf, size: int) -> None:
        """Write ``rows`` into ``slots``."""
        for slot, row in zip(slots.tolist(), rows, strict=True):
            self.data.extend([None] * (slot + 1 - len(self.data)))
            self.data[slot] = row

    def move(self, source: Tensor, target: Tensor) -> None:
        """Copy rows; the two do not overlap."""
        for i, j in zip(source.tolist(), target.tolist(), strict=True):
            self.data[j] = self.data[i]

    def at(self, slots: Tensor | slice) -> list[Any]:
        """Rows."""
        return list(select_leaf(self.data, slots))

    def nbytes(self, length: int) -> int:
        """Bytes of the tensors and the text in the first ``length`` rows."""
        return sum(_nbytes(row) for row in self.data[:length])


def _nbytes(row: Any) -> int:
    if isinstance(row, Tensor):
        return row.nbytes
    if isinstance(row, dict):
        return sum(_nbytes(value) for value in row.values())
    return len(row.encode()) if isinstance(row, str) else len(row) if isinstance(row, bytes) else 8
