"""Several data sets as one."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.batches import concatenate, select
from lightning_cl.streams.data import Data, sample_ids
from lightning_cl.streams.tensor_data import TensorData


class ConcatData:
    """Data sets one after the other; each keeps its own transforms and the randomness of its own indices.

    Args:
        parts: What to concatenate; their inputs have one shape, or are texts.
    """

    def __init__(self, parts: Sequence[Data]) -> None:
        self.parts = list(parts)
        self.targets = torch.cat([part.targets for part in self.parts])
        self.cheap = all(part.cheap for part in self.parts)
        self._ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> Any:
        """The samples at ``indices``, in that order; see ``Data.batch``."""
        owner = torch.searchsorted(self._ends, indices, right=True)
        served, places = [], []
        for number in owner.unique().tolist():
            place = (owner == number).nonzero().squeeze(1)
            start = int(self._ends[number]) - len(self.parts[number])
            served.append(self.parts[number].batch(indices[place] - start, epoch=epoch, augment=augment))
            places.append(place)
        # texts of unequal length are padded
        return select(reduce(concatenate, served), torch.cat(places).argsort())

    def sample_ids(self, indices: Tensor) -> Tensor | None:
        """What the parts call the samples at ``indices``; None if one of them has no names."""
        owner = torch.searchsorted(self._ends, indices, right=True)
        ids = torch.empty_like(indices)
        for number in owner.unique().tolist():
            start = int(self._ends[number]) - len(self.parts[number])
            found = sample_ids(self.parts[number], indices[owner == number] - start)
            if found is None:
                return None
            ids[owner == number] = found
        return ids


def concatenate_data(parts: Sequence[Data]) -> Data:
    """The parts as one: views of one tensor become one view (as fast as a part), others a `ConcatData`."""
    if len(parts) == 1:
        return parts[0]
    tensors = [part for part in parts if isinstance(part, TensorData)]
    alike = {
        (
            id(part.x),
            id(part.task_transform),
            id(part.augment),
            id(part.normalize),
            part.first_id,
            part.task_ids is None,
        )
        for part in tensors
    }
    # augmentation is left to the parts, whose seeds differ
    if len(tensors) < len(parts) or len(alike) > 1 or tensors[0].augment is not None:
        return ConcatData(parts)
    first = tensors[0]
    rows = [torch.arange(len(part)) if part.rows is None else part.rows for part in tensors]
    task_ids = [part.task_ids for part in tensors if part.task_ids is not None]
    return TensorData(
        first.x,
        torch.cat([part.targets for part in tensors]),
        first.task_transform,
        None,
        torch.cat(task_ids) if task_ids else None,
        first.normalize,
        rows=torch.cat(rows),
        seed=first.seed,
        first_id=first.first_id,
    )
