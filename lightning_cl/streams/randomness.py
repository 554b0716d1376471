"""Random transforms as functions of their sample: a derived seed in, nothing global changed."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_cl.functional.seeding import derive_seed


@contextmanager
def global_generators_kept() -> Iterator[None]:
    """Give back torch's CPU, Python's and NumPy's global generators as they were found."""
    torch_state, python_state, numpy_state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def set_global_generators(seed: int) -> None:
    """Put the three global generators in the state that belongs to ``seed``; use inside `global_generators_kept`.

    User transforms (torchvision v1 and v2 among them) draw from these and accept no generator of their own.
    """
    torch.default_generator.manual_seed(seed)
    random.setstate(random.Random(seed).getstate())
    # the object behind numpy.random's functions; a new RandomState and its state would take 0.2 ms per sample
    np.random.mtrand._rand.seed(seed & 0xFFFFFFFF)


def augment_each(augment: Callable[[Any], Any], x: Tensor, ids: Tensor, seed: int, epoch: int) -> Tensor:
    """Apply a random transform to a batch, each sample under the randomness of (seed, epoch, id).

    Args:
        augment: A transform of one sample (any torchvision transform on tensors), or one whose attribute ``batched`` is
            true, which is called once as ``augment(x, ids, seed)`` with a seed that depends on the epoch.
        x: Samples (N, ...), float.
        ids: Names of the samples (N,).
        seed: Seed of the data (stream and task).
        epoch: Current epoch.
    """
    if getattr(augment, "batched", False):
        return augment(x, ids, derive_seed(seed, "augment", epoch))  # type: ignore[call-arg]
    with global_generators_kept():
        samples = []
        for sample, name in zip(x, ids.tolist(), strict=True):
            set_global_generators(derive_seed(seed, "augment", epoch, name))
            samples.append(augment(sample))
    return torch.stack(samples)
