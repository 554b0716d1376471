"""A weight and its bias as one matrix."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MatrixLayer:
    """Where the matrix ``(out, [1 +] in)`` of a product lies: its first column is the bias, if it has one.

    With the bias first, a layer that grows (more rows, more inputs) keeps its old part in the leading corner.

    Args:
        weight: Name of a weight ``(out, in)``, or ``(out, channels, *kernel)`` with in = channels * prod(kernel).
        bias: Name of a bias ``(out,)``, or None.
        transposed: The weight is ``(in, out)``, as in ``x @ W``.
    """

    weight: str
    bias: str | None = None
    transposed: bool = False

    @property
    def names(self) -> list[str]:
        """Names of its parameters."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The parameters, or anything of their shapes, as the matrix; no graph, at least fp32, maybe a view."""
        weight = parameters[self.weight].detach()
        weight = weight.mT if self.transposed else weight.flatten(1)
        if self.bias is not None:
            weight = torch.cat([parameters[self.bias].detach().unsqueeze(1), weight], dim=1)
        return weight.to(torch.promote_types(weight.dtype, torch.float32))

    def part(self, name: str, matrix: Tensor, like: Tensor) -> Tensor:
        """What the matrix holds for one of :attr:`names`, in the shape of ``like``."""
        if name == self.bias:
            return matrix[:, 0]
        weight = matrix if self.bias is None else matrix[:, 1:]
        return weight.mT if self.transposed else weight.reshape(like.shape)
