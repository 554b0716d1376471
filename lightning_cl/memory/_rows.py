"""Rows of one column of a table: a tensor that grows in both directions, or a list."""

import logging
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, common_shape, pad_to, select_leaf

log = logging.getLogger(__name__)


class TensorRows:
    """CPU rows of one dtype; grows by doubling, and pads all rows when longer ones arrive (token batches)."""

    _warned = False

    def __init__(self, path: str, like: Tensor) -> None:
        self.path = path
        self.data = torch.empty((0, *like.shape[1:]), dtype=like.dtype)

    def check(self, rows: Leaf) -> None:
        """Refuse another kind of values."""
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
            common_shape(self.path, self.data.shape[1:], rows.shape[1:])

    def put(self, slots: Tensor, rows: Leaf, made: int, size: int) -> None:
        """Write ``rows`` into ``slots``; ``made`` rows are needed so far, and ``size`` is expected to be enough."""
        assert isinstance(rows, Tensor)
        if rows.shape[1:] != self.data.shape[1:]:
            shape = common_shape(self.path, self.data.shape[1:], rows.shape[1:])
            # a head that grows has wider logits; tokens are integers
            is_input = rows.is_floating_point() and not self.path.startswith("extra:")
            if is_input and len(self.data) and not self._warned:
                self._warned = True
                log.warning(
                    "leaf %r: %s beside %s in a memory; both are padded with zeros to %s, in the batches too",
                    *(self.path, tuple(rows.shape[1:]), tuple(self.data.shape[1:]), tuple(shape)),
                )
            if shape != self.data.shape[1:]:
                self._reshape(shape)
            rows = pad_to(self.path, rows, shape)
        if made > self.data.shape[0]:
            self._grow(max(made, min(size, 2 * self.data.shape[0])))
        rows = rows.detach() if rows.requires_grad else rows
        if rows.dtype != self.data.dtype or not rows.is_cpu:
            rows = rows.to(device="cpu", dtype=self.data.dtype)
        self.data.index_copy_(0, slots, rows)

    def wipe(self, slots: Tensor) -> None:
        """Overwrite with zeros."""
        self.data.index_fill_(0, slots[slots < len(self.data)], 0)

    def at(self, slots: Tensor) -> Tensor:
        """Rows, as a copy."""
        return self.data.index_select(0, slots)

    def nbytes(self, slots: Tensor) -> int:
        """Bytes of these rows."""
        return len(slots) * self.data[:1].nbytes

    def _grow(self, n: int) -> None:
        larger = self.data.new_empty((n, *self.data.shape[1:]))
        larger[: len(self.data)] = self.data
        larger[len(self.data) :] = 0
        self.data = larger

    def _reshape(self, shape: torch.Size) -> None:
        self.data = pad_to(self.path, self.data, shape)


class ListRows:
    """Rows that are not tensors: strings, numbers, one dict per sample."""

    def __init__(self) -> None:
        self.data: list[Any] = []

    def check(self, rows: Leaf) -> None:
        """Anything goes into a list."""

    def put(self, slots: Tensor, rows: Leaf, made: int, size: int) -> None:
        """Write ``rows`` into ``slots``."""
        for slot, row in zip(slots.tolist(), rows, strict=True):
            self.data.extend([None] * (slot + 1 - len(self.data)))
            self.data[slot] = row

    def wipe(self, slots: Tensor) -> None:
        """Let go of these rows."""
        for slot in slots.tolist():
            if slot < len(self.data):
                self.data[slot] = None

    def at(self, slots: Tensor) -> list[Any]:
        """Rows."""
        return list(select_leaf(self.data, slots))

    def nbytes(self, slots: Tensor) -> int:
        """Bytes of the tensors and the text in these rows."""
        return sum(bytes_of(row) for row in self.at(slots))


Rows = TensorRows | ListRows


def bytes_of(row: Any) -> int:
    """Bytes of one row of a list."""
    if isinstance(row, Tensor):
        return row.nbytes
    if isinstance(row, dict):
        return sum(bytes_of(value) for value in row.values())
    return len(row.encode()) if isinstance(row, str) else len(row) if isinstance(row, bytes) else 8
