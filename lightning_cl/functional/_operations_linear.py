"""Products of an input with a weight: ``nn.Linear``, ``x @ W``, HF's Conv1D."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cl.functional._operations import Operation, Target
from lightning_cl.functional._products import ProductSum, add_powers


class LinearOperation(Operation):
    """``x W^T + b`` with x ``(..., in)``; ``transposed``: ``x W + b``."""

    def __init__(self, output: Tensor, targets: dict[str, Target], inputs: Tensor, transposed: bool = False) -> None:
        super().__init__(output, targets)
        self.inputs, self.transposed = inputs.detach(), transposed

    def _sample_axes(self) -> Sequence[int]:
        # (tokens, samples, features) is torch's own default for attention; the last axis is that of the features
        return (0, 1) if len(self.shape) > 2 else (0,)

    def _placed(self) -> None:
        self.x = self._major(self.inputs).flatten(1, -2)
        self.sum = ProductSum(self.x, self.plan.power, self.plan.n_vectors, self.plan.budget)

    def receive(self, gradient: Tensor) -> None:
        self.gradient = self._major(gradient).flatten(1, -2)

    def per_sample(self, role: str, rows: slice) -> Tensor:
        g = self.gradient[rows]
        if role == "bias":
            return g.sum(1)
        product = torch.bmm(g.mT, self.x[rows])
        return product.mT if self.transposed else product

    def cost(self, role: str) -> int:
        return self.gradient.shape[2] * (1 if role == "bias" else self.x.shape[2])

    def add(self, role: str, total: Tensor) -> None:
        if role == "bias" and self.sum.single:
            self.sum.take(self.gradient)  # what the weight's product is made of is the bias's gradient already
        elif role == "bias":
            add_powers(total, self.gradient.sum(1), self.plan.power)
        else:
            self.sum.add(total.mT if self.transposed else total, self.gradient)

    def finish(self, role: str, total: Tensor) -> None:
        if role == "weight":
            self.sum.finish(total.mT if self.transposed else total)
        elif self.sum.single and self.sum.kept is not None:
            total.add_(self.sum.kept.sum(0))
