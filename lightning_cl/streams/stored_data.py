"""Samples of a memory as data."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import select
from lightning_cl.streams.data import Data
from lightning_cl.streams.tensor_data import TensorData


def stored_data(stored: Mapping[str, Any]) -> Data:
    """The data that stored batches of a stream were; nothing is augmented again.

    Args:
        stored: Leaves of the batches, see :class:`~lightning_cl.memory.Memory`: ``{"0": x, "1": y}`` and ``"2"`` for
            task ids, or the names of a mapping with ``labels``.

    Raises:
        InputError: For anything else.
    """
    if all(isinstance(leaf, Tensor) for leaf in stored.values()):
        if "labels" in stored:
            return MappingData(stored)
        if sorted(stored) in (["0", "1"], ["0", "1", "2"]):
            data = TensorData(stored["0"], stored["1"], task_id=stored.get("2"))
            data.named = False
            return data
    raise InputError(
        f"stored batches with leaves {sorted(stored)}",
        "tensors (x, y), (x, y, task), or a mapping with labels",
        "use a stream's own batches",
    )


class MappingData:
    """One batch, a mapping with ``labels``, as data.

    Args:
        whole: Name -> tensor (N, ...).
    """

    cheap = True

    def __init__(self, whole: Mapping[str, Tensor]) -> None:
        self.whole, self.targets = dict(whole), whole["labels"].long()

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> dict[str, Tensor]:
        """The samples at ``indices``; see ``Data.batch``."""
        return select(self.whole, indices)
