"""Rows of a weight by index."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cl.functional._operations import Operation, Target


class EmbeddingOperation(Operation):
    """Rows of a weight by index; the per-sample gradient is nonzero in the rows of the sample's own tokens only."""

    def __init__(
        self, output: Tensor, targets: dict[str, Target], indices: Tensor, rows: int, ignored: int | None
    ) -> None:
        super().__init__(output, targets)
        self.indices, self.rows, self.ignored = indices, rows, ignored

    def _sample_axes(self) -> Sequence[int]:
        return (0, 1) if len(self.shape) > 2 else (0,)

    def _placed(self) -> None:
        moved = self.indices.movedim(self.axis, 0) if self.axis else self.indices
        self.tokens = moved.reshape(self.plan.n, -1)

    def receive(self, gradient: Tensor) -> None:
        g = self._major(gradient).reshape(self.plan.n, self.tokens.shape[1], -1)
        self.gradient = g if self.ignored is None else g * (self.tokens != self.ignored).unsqueeze(2)

    def per_sample(self, role: str, rows: slice) -> Tensor:
        g, tokens = self.gradient[rows], self.tokens[rows]
        key = tokens + self.rows * torch.arange(len(tokens), device=tokens.device).unsqueeze(1)
        out = g.new_zeros(len(g) * self.rows, g.shape[2])
        return out.index_add_(0, key.flatten(), g.flatten(0, 1)).view(len(g), self.rows, -1)

    def cost(self, role: str) -> int:
        return self.rows * self.gradient.shape[2]

    def add_sum(self, role: str, total: Tensor) -> None:
        total.index_add_(0, self.tokens.flatten(), self.gradient.flatten(0, 1))

    def add(self, role: str, total: Tensor) -> None:
        g = self.gradient
        key = self.tokens + self.rows * torch.arange(self.plan.n, device=g.device).unsqueeze(1)
        pairs, place = key.flatten().unique(return_inverse=True)
        summed = g.new_zeros(len(pairs), g.shape[2]).index_add_(0, place, g.flatten(0, 1))
        total.index_add_(0, pairs % self.rows, summed.abs_() if self.plan.power == 1 else summed.square_())
