"""Memory samples beside a batch that is on its way to the training step."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.batches import concatenate, select

#: See :func:`own_size`; one entry for each memory that the batch is passing.
_PASSING: list[int] = []


@dataclass
class Drawn:
    """Memory samples as a batch of the user's structure, what is stored beside them, and where they are stored."""

    batch: Any
    extras: dict[str, Tensor]
    slots: Tensor

    def part(self, where: slice) -> "Drawn":
        """Some of the samples."""
        extras = {name: extra[where] for name, extra in self.extras.items()}
        return Drawn(select(self.batch, where), extras, self.slots[where])


def own_size(batch: Any) -> int:
    """How many samples of a batch on its way are the loader's; another memory's may stand behind them."""
    return _PASSING[-1] if _PASSING else size_of(batch)


def behind(batch: Any, drawn: list[Drawn]) -> Any:
    """The batch with the samples of the first draw behind its own; the batch itself if there is none."""
    return concatenate(batch, drawn[0].batch) if drawn else batch


def like(leaf: Any, other: Any) -> Any:
    """A memory leaf on the device of the batch's, in its floating dtype (half-precision inputs)."""
    if not isinstance(leaf, Tensor) or not isinstance(other, Tensor):
        return leaf
    both_floating = leaf.is_floating_point() and other.is_floating_point()
    return leaf.to(device=other.device, dtype=other.dtype if both_floating else leaf.dtype)


@contextmanager
def passing(batch: Any) -> Iterator[None]:
    """Inside the block the batch is on its way to other memories, with more samples behind its own."""
    _PASSING.append(own_size(batch))
    try:
        yield
    finally:
        _PASSING.pop()
