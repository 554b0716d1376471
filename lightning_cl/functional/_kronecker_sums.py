"""Second moments of what goes into one layer, and of the gradients of what comes out of it."""

import math
from collections.abc import Iterator, Mapping
from math import prod

import torch
from torch import Tensor

from lightning_cl.functional._kronecker_layer import MatrixLayer
from lightning_cl.functional._operations import Operation, wide
from lightning_cl.functional._operations_conv import ConvOperation
from lightning_cl.functional._operations_linear import LinearOperation
from lightning_cl.functional._products import chunks


class KroneckerSums:
    """Sums over samples and positions, for one layer.

    Args:
        layer: The layer.
        parameters: Name to parameter, for sizes, dtype and device.
        budget: Numbers that the patches of a convolution may hold at once.
    """

    def __init__(self, layer: MatrixLayer, parameters: Mapping[str, Tensor], budget: int) -> None:
        self.layer, self.budget = layer, budget
        matrix = layer.matrix(parameters)
        self.shape = matrix.shape
        self.G, self.A = (matrix.new_zeros(size, size) for size in self.shape)
        self.positions = 0

    def add_inputs(self, operation: Operation) -> None:
        """Add ``a a^T`` of every position, where a begins with a 1 for the bias."""
        for rows in self._rows(operation):
            x = self._inputs(operation, rows)
            self._block(self.A).addmm_(x, x.mT)
            if self.layer.bias is not None:
                total = x.sum(1)
                self.A[0, 0] += x.shape[1]
                self.A[0, 1:] += total
                self.A[1:, 0] += total
            self.positions += x.shape[1]

    def add_gradients(self, operation: Operation, gradient: Tensor) -> None:
        """Add ``g g^T`` of every position."""
        g = self._gradients(operation, gradient, slice(None))
        self.G.addmm_(g, g.mT)

    def agrees(self, operation: Operation, gradient: Tensor | None, found: Mapping[str, Tensor]) -> bool:
        """Whether the sum of ``g a^T`` is the gradient that autograd has found for the parameters."""
        oracle = self.layer.matrix(found)
        mine, noise = torch.zeros_like(oracle), 0.0
        if gradient is not None:
            for rows in self._rows(operation):
                x, g = self._inputs(operation, rows), self._gradients(operation, gradient, rows)
                mine[:, self.shape[1] - len(x) :].addmm_(g, x.mT)
                if self.layer.bias is not None:
                    mine[:, 0] += g.sum(1)
                # what rounding may leave of a sum that is zero: a bias in front of a norm
                noise += 1e-6 * float(g.abs().sum())
        half = operation.dtype in (torch.float16, torch.bfloat16)
        error, size = float((mine - oracle).norm()), float(oracle.norm())
        if not math.isfinite(size):
            return True  # bad weights or data: the factors are refused with that reason
        return error <= (5e-2 if half else 5e-3) * size + noise * (1e4 if half else 1) + 1e-12

    def _block(self, matrix: Tensor) -> Tensor:
        """Without the coordinate of the bias."""
        return matrix if self.layer.bias is None else matrix[1:, 1:]

    def _rows(self, operation: Operation) -> Iterator[slice]:
        if not isinstance(operation, ConvOperation):
            return iter([slice(None)])
        return chunks(operation.shape[0], prod(operation.kernel[1:]) * prod(operation.locations), self.budget)

    def _inputs(self, operation: Operation, rows: slice) -> Tensor:
        """Columns ``(in, positions)``."""
        if isinstance(operation, ConvOperation):
            x = operation.patches(wide(operation.inputs[rows])).transpose(0, 1).flatten(1)
        else:
            assert isinstance(operation, LinearOperation)
            x = wide(operation.inputs).flatten(0, -2).mT
        return x.to(self.A.dtype)

    def _gradients(self, operation: Operation, gradient: Tensor, rows: slice) -> Tensor:
        """Columns ``(out, positions)``, in the order of the inputs."""
        g = wide(gradient)
        g = g[rows].transpose(0, 1).flatten(1) if isinstance(operation, ConvOperation) else g.flatten(0, -2).mT
        return g.to(self.G.dtype)
