"""The quadratic penalty of Kronecker-factored EWC on one layer, summed over tasks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.functional._kronecker_layer import MatrixLayer
from lightning_cl.functional.kfac import KroneckerFactors
from lightning_cl.functional.penalty import pad_to
from lightning_cl.functional.seeding import generator


@dataclass(frozen=True)
class KroneckerPenalty:
    r"""The penalty on a layer's matrix W, one term per task t:

    .. math:: \frac{1}{2} \sum_t \mathrm{vec}(W-W_t)^T (A_t \otimes G_t)\, \mathrm{vec}(W-W_t)
        = \frac{1}{2} \sum_t \mathrm{tr}\left((W-W_t)^T G_t (W-W_t) A_t\right)

    (Ritter, Botev & Barber 2018, arXiv:1805.07810; without the strength). The anchors of all tasks but the last
    are in one constant, the ``pull``:

    .. math:: \sum_t G_t (W-W_t) A_t = \sum_t G_t (W-W_T) A_t + \underbrace{\sum_t G_t (W_T-W_t) A_t}_{pull}

    (around W_T and not around zero, so that nothing large cancels near the anchor).

    State: ``in^2 + out^2`` numbers per task and two matrices; with :meth:`with_summed`, for any number of tasks.

    Args:
        layer: Names and layout of the parameters.
        A: ``(T, in, in)``; in counts the column of the bias.
        G: ``(T, out, out)``.
        anchor: ``(out, in)``, the newest task's matrix.
        pull: ``(out, in)``, or None where it is zero.
        n_tasks: Tasks in it.
    """

    layer: MatrixLayer
    A: Tensor
    G: Tensor
    anchor: Tensor
    pull: Tensor | None = None
    n_tasks: int = 1

    @classmethod
    def of(cls, factors: KroneckerFactors, parameters: Mapping[str, Tensor]) -> "KroneckerPenalty":
        """The penalty of one task, around the parameters."""
        # a copy: the matrix may be a view of the live weights
        return cls(factors.layer, factors.A[None], factors.G[None], factors.layer.matrix(parameters).clone())

    @torch.no_grad()
    def gradient(self, matrix: Tensor) -> Tensor:
        """:math:`\\sum_t G_t (W-W_t) A_t`: two products per task."""
        difference = matrix - self.anchor
        total = torch.zeros_like(difference) if self.pull is None else self.pull.clone()
        for a, g in zip(self.A, self.G, strict=True):
            total.addmm_(g @ difference, a)
        return total

    def with_task(self, factors: KroneckerFactors, parameters: Mapping[str, Tensor]) -> "KroneckerPenalty":
        """This and a new task's term, exactly."""
        old, new, matrix = self._aligned(factors, parameters)
        pull = old.gradient(matrix)
        return replace(
            old,
            A=torch.cat([old.A, new.A]),
            G=torch.cat([old.G, new.G]),
            anchor=matrix,
            pull=pull if bool(pull.any()) else None,
            n_tasks=old.n_tasks + 1,
        )

    def with_summed(self, factors: KroneckerFactors, parameters: Mapping[str, Tensor]) -> "KroneckerPenalty":
        r"""One term in place of all, around the newest parameters: :math:`\frac{1}{T}\sum_t A_t \otimes \sum_t G_t`.

        A sum of Kronecker products is none; the product of the sums holds T² terms, hence the mean on one side. It is
        exact for tasks with equal factors.
        """
        old, new, matrix = self._aligned(factors, parameters)
        n = old.n_tasks + 1
        return replace(old, A=old.A + (new.A - old.A) / n, G=old.G + new.G, anchor=matrix, pull=None, n_tasks=n)

    def grown(self, parameters: Mapping[str, Tensor]) -> "KroneckerPenalty":
        """On the parameters' device, with zeros for the rows (and inputs) that they have gained."""
        like = self.layer.matrix(parameters)
        if like.shape == self.anchor.shape and like.device == self.anchor.device:
            return self
        out, size = like.shape

        def fitted(tensor: Tensor, *shape: int) -> Tensor:
            return pad_to(tensor.to(like.device), shape)

        tasks = len(self.A)
        return replace(
            self,
            A=fitted(self.A, tasks, size, size),
            G=fitted(self.G, tasks, out, out),
            anchor=fitted(self.anchor, out, size),
            pull=None if self.pull is None else fitted(self.pull, out, size),
        )

    @torch.no_grad()
    def largest_curvature(self, steps: int = 20) -> float:
        """The largest eigenvalue of :math:`\\sum_t A_t \\otimes G_t`, from below (power iteration)."""
        flat = replace(self, anchor=torch.zeros_like(self.anchor), pull=None)
        vector = torch.randn(self.anchor.shape, generator=generator("kronecker curvature")).to(self.anchor)
        value = 0.0
        for _ in range(steps):
            vector = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
            image = flat.gradient(vector)
            value, vector = float((vector * image).sum()), image
        return value

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = [self.A, self.G, self.anchor, *([] if self.pull is None else [self.pull])]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def state(self) -> dict[str, Any]:
        """Tensors and primitives, for :meth:`from_state`."""
        layer = {"weight": self.layer.weight, "bias": self.layer.bias, "transposed": self.layer.transposed}
        tensors = {"A": self.A, "G": self.G, "anchor": self.anchor, "pull": self.pull}
        return {**layer, **tensors, "n_tasks": self.n_tasks}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "KroneckerPenalty":
        """What :meth:`state` has told."""
        layer = MatrixLayer(state["weight"], state["bias"], state["transposed"])
        return cls(layer, *(state[key] for key in ("A", "G", "anchor", "pull", "n_tasks")))

    def _aligned(
        self, factors: KroneckerFactors, parameters: Mapping[str, Tensor]
    ) -> tuple["KroneckerPenalty", "KroneckerPenalty", Tensor]:
        """This, the new task's penalty, and the parameters, all in one size; a bias may have come or gone."""
        new = KroneckerPenalty.of(factors, parameters)
        bias = self.layer.bias or new.layer.bias
        old, new = (penalty._with_bias(bias) for penalty in (self, new))
        return old.grown(parameters), new.grown(parameters), old.layer.matrix(parameters).clone()

    def _with_bias(self, bias: str | None) -> "KroneckerPenalty":
        """A column for a bias that its tasks did not train."""
        if bias == self.layer.bias:
            return self
        return replace(
            self,
            layer=replace(self.layer, bias=bias),
            A=F.pad(self.A, (1, 0, 1, 0)),
            anchor=F.pad(self.anchor, (1, 0)),
            pull=None if self.pull is None else F.pad(self.pull, (1, 0)),
        )
