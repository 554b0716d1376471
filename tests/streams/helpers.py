"""Small data for the tests of this folder; picklable, so that worker processes can have them."""

import random

import numpy as np
import torch

from lightning_cl.streams import Classification, TensorData


class NoisyItems:
    """A map-style data set that draws from all three global generators, as careless user code does."""

    def __init__(self, n: int = 23) -> None:
        self.n, self.targets = n, [index % 3 for index in range(n)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        noise = torch.tensor([torch.rand(1).item(), random.random(), np.random.rand()], dtype=torch.float64)
        return index + noise, self.targets[index]


class JitterEach:
    """A random augmentation of one sample, from torch's global generator."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand(())


def numbered(n: int = 23, **kwargs) -> TensorData:
    """Samples that hold their own index."""
    return TensorData(torch.arange(n).float().unsqueeze(1), torch.arange(n) % 3, **kwargs)


def classes(n_classes: int = 10, per_class: int = 12, shape: tuple[int, ...] = (1, 4, 4)) -> Classification:
    """A data set whose pixels are 10 * label + position in the class; shuffled labels."""
    order = torch.randperm(n_classes * per_class, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(n_classes * per_class) % n_classes)[order]
    x = torch.arange(len(labels)).float().view(-1, *[1] * len(shape)).expand(-1, *shape).clone()
    test = TensorData(x + 0.5, labels, first_id=len(x))
    return Classification(TensorData(x, labels), test, [f"c{label}" for label in range(n_classes)])


def equal(a, b) -> bool:
    """Whether two lists of batches are the same, bit for bit."""
    return len(a) == len(b) and all(
        len(one) == len(two) and all(torch.equal(p, q) for p, q in zip(one, two, strict=True))
        for one, two in zip(a, b, strict=True)
    )
