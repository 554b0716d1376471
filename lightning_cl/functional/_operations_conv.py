"""Convolutions of one to three dimensions, and their transposes: products with the patches of the input."""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.functional._operations import Operation, Target, wide
from lightning_cl.functional._products import ProductSum, add_powers, chunks, deferred


class ConvOperation(Operation):
    """``weight (out, in / groups, *kernel)``; transposed: ``weight (in, out / groups, *kernel)``.

    The gradient of the weight is the product of the output's gradient with the patches of the (padded) input, summed
    over locations. For the transposed convolution it is the product of the input with the patches of the output's
    gradient.

    Args:
        output: See the base.
        targets: ``"weight"``, ``"bias"``.
        inputs: ``(N, in, *spatial)``.
        kernel: Shape of the weight.
        stride, dilation: One number per spatial dimension.
        padding: Left and right padding per spatial dimension.
        groups: Groups.
        transposed: Whether it is a transposed convolution.
    """

    def __init__(
        self,
        output: Tensor,
        targets: dict[str, Target],
        inputs: Tensor,
        kernel: Sequence[int],
        *,
        stride: Sequence[int],
        padding: Sequence[tuple[int, int]],
        dilation: Sequence[int],
        groups: int,
        transposed: bool,
    ) -> None:
        super().__init__(output, targets)
        self.inputs, self.kernel, self.groups, self.transposed = inputs.detach(), tuple(kernel), groups, transposed
        self.stride, self.padding, self.dilation = tuple(stride), tuple(padding), tuple(dilation)
        self.locations = tuple((self.inputs.shape if transposed else self.shape)[2:])

    def _placed(self) -> None:
        self.frames = self.shape[0] // self.plan.n
        positions = self.frames * prod(self.locations)
        self.patch_cost = prod(self.kernel[1:]) * self.groups * positions
        self.sum: ProductSum | None = None
        # the products of all cotangents at once; its patches are small, because there are few locations
        if self.groups == 1 and deferred(positions, self.plan.power, self.plan.n_vectors):
            fixed = self._fixed(slice(None))
            self.sum = ProductSum(fixed, self.plan.power, self.plan.n_vectors, self.plan.budget)

    def receive(self, gradient: Tensor) -> None:
        self.gradient = wide(gradient)

    def per_sample(self, role: str, rows: slice) -> Tensor:
        frames = self._frames(rows)
        if role == "bias":
            g = self.gradient[frames].flatten(2).sum(2)
            return g.view(-1, self.frames, g.shape[1]).sum(1)
        product = torch.bmm(self._varying(frames).mT, self._fixed(frames))
        return (product.mT if self.transposed else product).reshape(-1, *self.kernel)

    def cost(self, role: str) -> int:
        per_frame = self.gradient[0].numel() * self.frames
        return per_frame if role == "bias" else prod(self.kernel) + self.patch_cost

    def add(self, role: str, total: Tensor) -> None:
        plan = self.plan
        if role == "bias":
            add_powers(total, self.per_sample(role, slice(0, plan.n)), plan.power)
        elif self.sum is not None:
            self.sum.add(self._flat(total), self._varying(slice(None)))
        elif self.groups > 1:
            super().add(role, total)
        else:
            for rows in chunks(plan.n, self.patch_cost, plan.budget):
                frames = self._frames(rows)
                products = ProductSum(self._fixed(frames), plan.power, 1, plan.budget)
                products.add(self._flat(total), self._varying(frames))
                products.finish(self._flat(total))

    def finish(self, role: str, total: Tensor) -> None:
        if role == "weight" and self.sum is not None:
            self.sum.finish(self._flat(total))

    def _flat(self, total: Tensor) -> Tensor:
        flat = total.view(self.kernel[0], -1)
        return flat.mT if self.transposed else flat

    def _frames(self, rows: slice) -> slice:
        return slice(rows.start * self.frames, rows.stop * self.frames)

    def _fixed(self, frames: slice) -> Tensor:
        """The factor that is the same for every cotangent, per sample and group: ``(n * groups, locations, size)``."""
        x = wide(self.inputs[frames])
        return self._grouped(x.flatten(2) if self.transposed else self.patches(x))

    def _varying(self, frames: slice) -> Tensor:
        g = self.gradient[frames]
        return self._grouped(self.patches(g) if self.transposed else g.flatten(2))

    def _grouped(self, tensor: Tensor) -> Tensor:
        """``(n * M, groups * A, L)`` as ``(n * groups, M * L, A)``."""
        size = tensor.shape[1] // self.groups
        if self.frames == 1:
            return tensor.reshape(-1, size, tensor.shape[2]).mT
        split = tensor.view(-1, self.frames, self.groups, size, tensor.shape[2])
        return split.permute(0, 2, 1, 4, 3).reshape(-1, self.frames * tensor.shape[2], size)

    def patches(self, tensor: Tensor) -> Tensor:
        """``(N, C, *spatial)`` as ``(N, C * prod(kernel), L)``, in the order of ``F.unfold``."""
        kernel = self.kernel[2:]
        if any(left or right for left, right in self.padding):
            tensor = F.pad(tensor, [side for pair in reversed(self.padding) for side in pair])
        if all(size == 1 for size in kernel) and all(step == 1 for step in self.stride):
            return tensor.flatten(2)
        if len(kernel) == 2 and not self.transposed:
            return F.unfold(tensor, kernel, dilation=self.dilation, stride=self.stride)
        for axis, count in enumerate(self.locations, start=2):
            size, step, gap = kernel[axis - 2], self.stride[axis - 2], self.dilation[axis - 2]
            # a transposed convolution with output padding does not reach the end
            tensor = tensor.unfold(axis, gap * (size - 1) + 1, step)[..., ::gap].narrow(axis, 0, count)
        d = len(kernel)
        order = [0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d)]
        return tensor.permute(order).reshape(len(tensor), -1, prod(self.locations))
