"""What operations did with parameters: each gives per-sample gradients from its input and the gradient of its output.

An operation is recorded in the forward pass (:mod:`._capture`), receives the gradient of its output for one cotangent
after the other, and adds ``sum_n |g_n|^power`` to the totals of its parameters. Nothing is flattened over positions:
the gradient of a sample is summed over tokens or locations *before* it is squared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from lightning_cl.functional._products import add_powers, chunks


@dataclass(frozen=True)
class Target:
    """A parameter, or the rows ``start:stop`` of its first dimension."""

    name: str
    start: int | None = None
    stop: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The target's part of a tensor of the parameter's shape."""
        return tensor if self.start is None else tensor[self.start : self.stop]


@dataclass(frozen=True)
class Plan:
    """How the totals of one batch are formed.

    Args:
        n: Samples.
        power: 2 for squares, 1 for absolute values.
        n_vectors: Cotangents that will come.
        budget: Numbers that may be held at once.
    """

    n: int
    power: int
    n_vectors: int
    budget: int


class Operation:
    """One call of one function with one or more parameters.

    Args:
        output: The result, with its graph; only its place in the graph is kept, because what follows may change it in
            place (``ReLU(inplace=True)``).
        targets: Role (``"weight"``, ``"bias"``) to parameter.
    """

    def __init__(self, output: Tensor, targets: dict[str, Target]) -> None:
        self.edge = get_gradient_edge(output)
        self.shape, self.dtype = output.shape, output.dtype
        self.targets = targets
        self.plan, self.axis = Plan(0, 2, 1, 2**22), 0
        self.gradient = torch.empty(0)

    @property
    def signature(self) -> tuple[object, ...]:
        """What must be the same in every batch for the check of the first one to hold."""
        return (type(self).__name__, *sorted((role, t.name, t.start or 0) for role, t in self.targets.items()))

    def axes(self, n: int) -> list[int]:
        """Axes of the output that may be that of the samples, the likelier first."""
        fits = [axis for axis in self._sample_axes() if axis < len(self.shape)]
        # several entries a sample (flattened tokens, frames) only on the first axis
        return [a for a in fits if self.shape[a] == n or (a == 0 and self.shape[0] > 0 and self.shape[0] % n == 0)]

    def _sample_axes(self) -> Sequence[int]:
        return (0,)

    def place(self, plan: Plan, axis: int) -> None:
        """Begin a batch."""
        self.plan, self.axis = plan, axis
        self._placed()

    def _placed(self) -> None: ...

    def receive(self, gradient: Tensor) -> None:
        """Take in the gradient of the output for the next cotangent."""
        self.gradient = self._major(gradient)

    def _major(self, tensor: Tensor) -> Tensor:
        """Samples first, at least fp32: ``(n, M, ...)`` with M entries of the sample axis for each."""
        moved = wide(tensor.movedim(self.axis, 0) if self.axis else tensor)
        return moved.reshape(self.plan.n, moved.shape[0] // self.plan.n, *moved.shape[1:])

    def per_sample(self, role: str, rows: slice) -> Tensor:
        """Gradients of these samples, ``(rows, *shape of the target)``."""
        raise NotImplementedError

    def cost(self, role: str) -> int:
        """Numbers that :meth:`per_sample` holds for one sample."""
        raise NotImplementedError

    def add(self, role: str, total: Tensor) -> None:
        """Add the sum over samples of ``|gradient|^power``, or note what :meth:`finish` will need."""
        for rows in chunks(self.plan.n, self.cost(role), self.plan.budget):
            add_powers(total, self.per_sample(role, rows), self.plan.power)

    def add_sum(self, role: str, total: Tensor) -> None:
        """Add the sum of all samples' gradients: what autograd gives, from the same factors."""
        for rows in chunks(self.plan.n, self.cost(role), self.plan.budget):
            total.add_(self.per_sample(role, rows).sum(0))

    def finish(self, role: str, total: Tensor) -> None:
        """After the last cotangent: add what :meth:`add` left."""


def wide(tensor: Tensor) -> Tensor:
    """No graph, at least fp32."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
