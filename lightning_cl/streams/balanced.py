"""Stored samples of the past and as many of the present, as one data set."""

from collections.abc import Mapping
from typing import Any

import torch

from lightning_cl.functional.seeding import generator
from lightning_cl.streams.concat_data import ConcatData
from lightning_cl.streams.data import Data
from lightning_cl.streams.selected_data import SelectedData
from lightning_cl.streams.stored_data import stored_data


def balanced_data(stored: Mapping[str, Any], data: Data, per_class: int, *seed: int | str) -> ConcatData:
    """Stored samples, as they are, and at most ``per_class`` random samples of every class of ``data``.

    Args:
        stored: Leaves of stored batches, see :func:`~lightning_cl.streams.stored_data.stored_data`.
        data: Data of the present.
        per_class: Samples taken of each class.
        seed: What the choice depends on.

    Raises:
        InputError: If the stored batches are not a stream's own.

    Example:
        >>> from lightning_cl.streams import TensorData
        >>> stored = {"0": torch.zeros(2, 3), "1": torch.tensor([0, 1])}
        >>> present = TensorData(torch.ones(6, 3), torch.tensor([2, 3, 2, 3, 2, 3]))
        >>> balanced_data(stored, present, 1, 0).targets.tolist()
        [0, 1, 2, 3]
    """
    past = stored_data(stored)
    chosen = []
    for label in data.targets.unique().tolist():
        members = (data.targets == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator(*seed, "balanced", label))
        chosen.append(members[order[:per_class]])
    return ConcatData([past, SelectedData(data, torch.cat(chosen))])
