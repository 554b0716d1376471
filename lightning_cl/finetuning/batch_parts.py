"""Inputs, labels and task ids of a batch: the one place that knows how a batch of ours is built."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import leaves, rebuild, select_leaf
from lightning_cl.memory._labels import ID_NAMES, LABEL_NAMES

TASK_NAMES = ("task", "task_id", "task_ids")


class BatchParts(NamedTuple):
    """What a batch is made of.

    Attributes:
        inputs: A tensor (N, ...), or a mapping of per-sample leaves (``input_ids`` and ``attention_mask``).
        y: Labels (N,), or None in a batch to predict.
        task: Task ids (N,), or None.
    """

    inputs: Any
    y: Any
    task: Any


def split_batch(batch: Any) -> BatchParts:
    """The parts of ``(x, y)``, ``(x, y, task)``, a bare ``x``, or a mapping.

    In a mapping, labels are called ``labels``, ``label``, ``y``, ``target`` or ``targets``, task ids ``task`` or
    ``task_id``; names of samples (``id``) and what is no tensor are left out. The rest is the inputs: a mapping,
    or the tensor itself where there is only one.

    Raises:
        InputError: If there is no input.

    Example:
        >>> import torch
        >>> batch = {"input_ids": torch.ones(2, 5), "attention_mask": torch.ones(2, 5), "labels": torch.tensor([0, 1])}
        >>> inputs, y, task = split_batch(batch)
        >>> list(inputs), y.tolist(), task
        (['input_ids', 'attention_mask'], [0, 1], None)
        >>> split_batch((torch.ones(2, 5), torch.tensor([0, 1]))).inputs.shape
        torch.Size([2, 5])
    """
    if isinstance(batch, Mapping):
        return _of_mapping(batch)
    x, *rest = batch if isinstance(batch, tuple | list) else (batch,)
    y, task = [*rest[:2], None, None][:2]
    return BatchParts(x, y, task)


def _of_mapping(batch: Mapping[str, Any]) -> BatchParts:
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    found = [[name for name in names if name in tensors] for names in (LABEL_NAMES, TASK_NAMES)]
    y, task = (tensors[names[0]] if names else None for names in found)
    other = {*ID_NAMES, *found[0], *found[1]}
    inputs = {name: value for name, value in tensors.items() if name not in other}
    if not inputs:
        raise InputError(
            f"a batch with {sorted(map(str, batch))}, no tensor of which is an input",
            "input_ids and attention_mask, or another tensor of inputs, beside labels",
            "tokenise in the data: a stream of lightning_cl.streams.text_files does",
        )
    return BatchParts(next(iter(inputs.values())) if len(inputs) == 1 else inputs, y, task)


def chosen_inputs(inputs: Any, mask: Tensor) -> Any:
    """Those samples of ``inputs``, a tensor or a mapping, for which ``mask`` (N,) bool is true."""
    return rebuild(inputs, {path: select_leaf(leaf, mask) for path, leaf in leaves(inputs).items()})
