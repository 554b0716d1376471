"""Parameters that are broadcast: affine parts of norms, position embeddings, class tokens, layer scales."""

from collections.abc import Sequence

from torch import Tensor

from lightning_cl.functional._operations import Operation, Target


class AffineOperation(Operation):
    """A parameter that is broadcast: ``x * w``, ``x + b``, the affine part of a norm, copies of a token.

    Args:
        output: See the base.
        targets: ``"weight"`` (multiplied with ``factor``), ``"bias"`` (added).
        factor: What the weight is multiplied with, broadcastable to the output; unused without a weight.
        broadcast: The parameters' shape as it stands against the output, of the output's rank.
        shape: The parameters' own shape.
    """

    def __init__(
        self,
        output: Tensor,
        targets: dict[str, Target],
        factor: Tensor | None,
        broadcast: Sequence[int],
        shape: Sequence[int],
    ) -> None:
        super().__init__(output, targets)
        self.factor, self.broadcast, self.parameter_shape = factor, list(broadcast), tuple(shape)

    def _sample_axes(self) -> Sequence[int]:
        return [axis for axis in (0, 1) if axis < len(self.broadcast) and self.broadcast[axis] == 1]

    def _placed(self) -> None:
        rest = [size for axis, size in enumerate(self.broadcast) if axis != self.axis]
        # axes of (n, M, ...) over which the parameter is one and the same
        self.summed = [1, *(axis + 2 for axis, size in enumerate(rest) if size == 1)]

    def per_sample(self, role: str, rows: slice) -> Tensor:
        g = self.gradient[rows]
        if role == "weight":
            assert self.factor is not None
            g = g * self._major(self.factor.expand(self.shape))[rows]
        return g.sum(self.summed).reshape(len(g), *self.parameter_shape)

    def cost(self, role: str) -> int:
        return self.gradient[0].numel()
