"""Closed forms of sums of squared per-sample gradients, from a layer's input and the gradients of its output.

A rule is made per batch with the layer's input, is fed the output gradients of each cotangent with ``add``, and has,
after ``finish``, added ``sum_n sum_k g_nk^2`` to the accumulator of each parameter. Nothing is flattened over
positions: the gradient of a sample is summed over tokens or locations *before* it is squared.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements of per-sample weight gradients held at once: 16 MiB in fp32.
_BUDGET = 2**22


class Rule(Protocol):
    """What the engine asks of a rule."""

    attributes: ClassVar[tuple[str, ...]]

    def __init__(self, layer: nn.Module, inputs: Tensor, sums: Mapping[str, Tensor]) -> None: ...

    @staticmethod
    def supports(layer: nn.Module, inputs: Tensor, n: int) -> bool:
        """Whether the closed form holds for a batch of n samples of this shape."""

    def add(self, gradients: Tensor) -> None:
        """Take in the gradients of the layer's output for one cotangent, in the output's shape."""

    def finish(self) -> None:
        """Add what is left to the accumulators (parameter name in the layer to tensor) given to the constructor."""


class LinearRule:
    """``nn.Linear``; (N, in) by one matmul of squares at the end, (N, ..., in) by per-sample products."""

    attributes: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, layer: nn.Module, inputs: Tensor, sums: Mapping[str, Tensor]) -> None:
        self.x, self.sums = _wide(inputs), sums
        self.squares: Tensor | None = None

    @staticmethod
    def supports(layer: nn.Module, inputs: Tensor, n: int) -> bool:
        return inputs.dim() >= 2 and inputs.shape[0] == n

    def add(self, gradients: Tensor) -> None:
        g = _wide(gradients)
        if g.dim() == 2:
            self.squares = g.square() if self.squares is None else self.squares.addcmul_(g, g)
            return
        g, x = g.flatten(1, -2), self.x.flatten(1, -2)
        if "bias" in self.sums:
            self.sums["bias"].add_(g.sum(1).square_().sum(0))
        if "weight" in self.sums:
            for rows in _chunks(len(g), g.shape[2] * x.shape[2]):
                self.sums["weight"].add_(torch.bmm(g[rows].mT, x[rows]).square_().sum(0))

    def finish(self) -> None:
        if self.squares is None:
            return
        if "bias" in self.sums:
            self.sums["bias"].add_(self.squares.sum(0))
        if "weight" in self.sums:
            self.sums["weight"].addmm_(self.squares.t(), self.x.square())


class Conv2dRule:
    """``nn.Conv2d`` of any stride, padding, padding mode, dilation and groups: per-sample products with the patches."""

    attributes: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, layer: nn.Module, inputs: Tensor, sums: Mapping[str, Tensor]) -> None:
        assert isinstance(layer, nn.Conv2d)
        self.layer, self.x, self.sums = layer, inputs, sums

    @staticmethod
    def supports(layer: nn.Module, inputs: Tensor, n: int) -> bool:
        return inputs.dim() == 4 and inputs.shape[0] == n

    def add(self, gradients: Tensor) -> None:
        g = _wide(gradients).flatten(2)
        if "bias" in self.sums:
            self.sums["bias"].add_(g.sum(2).square_().sum(0))
        if "weight" not in self.sums:
            return
        weight, groups = self.layer.weight, self.layer.groups
        per_sample = weight.numel() + weight[0].numel() * groups * g.shape[2]
        for rows in _chunks(len(g), per_sample):
            patches = self._patches(rows)
            patches = patches.reshape(-1, patches.shape[1] // groups, patches.shape[2])
            grouped = g[rows].reshape(-1, g.shape[1] // groups, g.shape[2])
            squares = torch.bmm(grouped, patches.mT).square_()
            self.sums["weight"].add_(squares.view(-1, *weight.shape).sum(0))

    def _patches(self, rows: slice) -> Tensor:
        layer = self.layer
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        # the layer's own list covers "same", asymmetric for even kernels, as well
        padded = F.pad(_wide(self.x[rows]), layer._reversed_padding_repeated_twice, mode=mode)
        return F.unfold(padded, layer.kernel_size, dilation=layer.dilation, stride=layer.stride)

    def finish(self) -> None: ...


class BatchNormRule:
    """``nn.BatchNorm1d/2d/3d`` on running statistics (eval mode): ``g * xhat`` summed over positions."""

    attributes: ClassVar[tuple[str, ...]] = ("weight", "bias")

    def __init__(self, layer: nn.Module, inputs: Tensor, sums: Mapping[str, Tensor]) -> None:
        assert isinstance(layer.running_mean, Tensor)
        assert isinstance(layer.running_var, Tensor)
        mean, variance = _wide(layer.running_mean), _wide(layer.running_var)
        self.mean, self.scale = mean.view(1, -1, 1), (variance + layer.eps).rsqrt().view(1, -1, 1)  # type: ignore[operator]
        self.x, self.sums = _positions(inputs), sums

    @staticmethod
    def supports(layer: nn.Module, inputs: Tensor, n: int) -> bool:
        return inputs.dim() >= 2 and inputs.shape[0] == n and isinstance(layer.running_mean, Tensor)

    def add(self, gradients: Tensor) -> None:
        g = _positions(gradients)
        if "bias" in self.sums:
            self.sums["bias"].add_(g.sum(2).square_().sum(0))
        if "weight" in self.sums:
            normalised = (self.x - self.mean) * self.scale
            self.sums["weight"].add_((g * normalised).sum(2).square_().sum(0))

    def finish(self) -> None: ...


RULES: dict[type[nn.Module], type[Rule]] = {
    nn.Linear: LinearRule,
    nn.Conv2d: Conv2dRule,
    nn.BatchNorm1d: BatchNormRule,
    nn.BatchNorm2d: BatchNormRule,
    nn.BatchNorm3d: BatchNormRule,
}


def rule_of(layer: nn.Module) -> type[Rule] | None:
    """The rule for a layer, or None; a subclass keeps its base's rule only if it computes the same."""
    # a forward replaced on the instance may compute anything
    if "forward" in vars(layer):
        return None
    for base, rule in RULES.items():
        same = all(
            getattr(type(layer), name, None) is getattr(base, name, None) for name in ("forward", "_conv_forward")
        )
        if isinstance(layer, base) and same:
            return rule
    return None


def _positions(tensor: Tensor) -> Tensor:
    """(N, C, ...) as (N, C, L)."""
    return _wide(tensor).reshape(tensor.shape[0], tensor.shape[1], -1)


def _chunks(n: int, per_sample: int) -> Iterator[slice]:
    size = max(1, _BUDGET // max(per_sample, 1))
    return (slice(start, start + size) for start in range(0, n, size))


def _wide(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
