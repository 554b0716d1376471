"""Stored samples of the past and as many of the present, as one data set."""

from collections.abc import Mapping
from typing import Any

import torch

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.concat_data import ConcatData
from lightning_cl.streams.data import Data
from lightning_cl.streams.selected_data import SelectedData
from lightning_cl.streams.tensor_data import TensorData


def balanced_data(stored: Mapping[str, Any], data: Data, per_class: int, *seed: int | str) -> ConcatData:
    """Stored samples, as they are, and at most ``per_class`` random samples of every class of ``data``.

    Args:
        stored: Leaves of stored batches, ``{"0": x, "1": y}`` and ``"2"`` for task ids, see
            :class:`~lightning_cl.memory.Memory`.
        data: Data of the present.
        per_class: Samples taken of each class.
        seed: What the choice depends on.

    Raises:
        InputError: If the stored batches are not ``(x, y)`` or ``(x, y, task)``.

    Example:
        >>> stored = {"0": torch.zeros(2, 3), "1": torch.tensor([0, 1])}
        >>> present = TensorData(torch.ones(6, 3), torch.tensor([2, 3, 2, 3, 2, 3]))
        >>> balanced_data(stored, present, 1, 0).targets.tolist()
        [0, 1, 2, 3]
    """
    if sorted(stored) not in (["0", "1"], ["0", "1", "2"]):
        raise InputError(
            f"stored batches with leaves {sorted(stored)}", "(x, y) or (x, y, task)", "use a stream's own batches"
        )
    past = TensorData(stored["0"], stored["1"], task_id=stored.get("2"))
    chosen = []
    for label in data.targets.unique().tolist():
        members = (data.targets == label).nonzero().squeeze(1)
        order = torch.randperm(len(members), generator=generator(*seed, "balanced", label))
        chosen.append(members[order[:per_class]])
    return ConcatData([past, SelectedData(data, torch.cat(chosen))])
