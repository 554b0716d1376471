"""The samples on which candidates are compared."""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import leaves
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.data import Data
from lightning_cl.streams.selected_data import SelectedData
from lightning_cl.streams.stream import merge_tasks

_LOOKED_AT = 64


class Samples(NamedTuple):
    """Training data, and validation data if there are any."""

    train: Data
    validation: Data | None


def samples_of(tasks: list[Any], max_samples: int | None, seed: int) -> Samples:
    """The tasks' training and validation data, a class-balanced part of each where there are more than ``max_samples``.

    Raises:
        InputError: If there are fewer than two classes.
    """
    whole = merge_tasks(tasks, id=tasks[-1].id, name="tasks") if len(tasks) > 1 else tasks[0]
    train = _part(whole.train, max_samples, seed, "train")
    validation = None if whole.validation is None else _part(whole.validation, max_samples, seed, "validation")
    classes = len(train.targets.unique())
    if classes < 2:
        given = f"{len(train)} samples of {classes} class"
        raise InputError(
            given, "samples of two classes at least", "leave --task out, or give a task of several classes"
        )
    return Samples(train, validation)


def balanced_indices(targets: Tensor, count: int, *seed: int | str) -> Tensor:
    """Sorted indices of ``count`` samples, as many of each class as there are, none twice.

    Example:
        >>> chosen = balanced_indices(torch.tensor([0] * 90 + [1] * 10), 30, 0)
        >>> torch.tensor([0] * 90 + [1] * 10)[chosen].bincount().tolist()
        [20, 10]
    """
    rng = generator(*seed)
    shuffled = torch.randperm(len(targets), generator=rng)
    labels = targets[shuffled]
    turn = torch.empty(len(targets), dtype=torch.long)
    for label in labels.unique():
        own = (labels == label).nonzero().squeeze(1)
        turn[own] = torch.arange(len(own))
    return shuffled[turn.argsort(stable=True)[:count]].sort().values


def digest_of(data: Data) -> str:
    """A hash of the number of samples, the labels, and the inputs of some of them as they are served."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(data.targets.contiguous().numpy().tobytes())
    looked_at = torch.linspace(0, len(data) - 1, min(_LOOKED_AT, len(data))).round().long().unique()
    batch = data.batch(looked_at)
    for path, leaf in leaves(batch).items():
        digest.update(path.encode())
        if isinstance(leaf, Tensor):
            digest.update(repr((tuple(leaf.shape), leaf.dtype)).encode())
            digest.update(leaf.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()


def is_text(stream_config: Mapping[str, Any]) -> bool:
    """Whether a stream's section of a config makes texts into tokens."""
    dataset = stream_config.get("dataset")
    return isinstance(dataset, Mapping) and "tokenizer" in dataset


def _part(data: Data, most: int | None, seed: int, name: str) -> Data:
    if most is None or len(data) <= most:
        return data
    return SelectedData(data, balanced_indices(data.targets, most, seed, "select", name))
