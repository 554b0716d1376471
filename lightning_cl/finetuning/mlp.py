"""A fully connected feature extractor."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from lightning_cl.errors import InputError


class MLP(nn.Module):
    """Flattens its input and applies Linear + ReLU layers; features are the last hidden layer.

    Args:
        input_shape: Shape of one sample.
        hidden: Width of each hidden layer.

    Example:
        >>> MLP((1, 8, 8), hidden=(32, 16)).feature_dim
        16
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (400, 400)) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise InputError(f"hidden={list(hidden)!r}", "widths >= 1 of at least one layer", "try hidden=[400,400]")
        self.spec = {"name": "mlp", "input_shape": list(input_shape), "hidden": list(hidden)}
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.feature_dim = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, hidden[-1]) of inputs (N, ...)."""
        return self.layers(x)
