"""A first guess of a penalty's lambda from the data."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cl.functional._chunks import wide

# measured: one factor for all streams in docs/importance.md, with room to both sides
_FACTOR = 0.5


class Suggestion(NamedTuple):
    """A lambda, and the two norms that it balances."""

    lambda_: float
    gradient_norm: float
    pull_norm: float


@torch.no_grad()
def suggest_lambda(
    gradients: Iterable[Tensor], importances: Iterable[Tensor], anchors: Iterable[Tensor]
) -> Suggestion | None:
    r"""Lambda with which the penalty can hold against the loss of a new task.

    .. math:: \lambda = \frac{1}{2} \frac{\|g\|}{\|\Omega\, \theta^*\|}

    with g the gradient of the new task's loss as the task begins: the penalty's pull at a distance of the parameters'
    own size is then half as strong as the new task's first push. It has the right units for any importance (Fisher,
    SI, MAS, ones), and the penalty that it gives does not change when the importance is scaled.

    Args:
        gradients: Gradients of the loss, averaged over at least a batch, of all parameters that are trained.
        importances: Importances of those that have one.
        anchors: Their anchors, in the same order.

    Returns:
        The suggestion, or None if one of the norms is 0 or not finite.

    Example:
        >>> suggest_lambda([torch.tensor([3.0, 4.0])], [torch.tensor([0.5, 0.0])], [torch.tensor([2.0, 9.0])])
        Suggestion(lambda_=2.5, gradient_norm=5.0, pull_norm=1.0)
    """
    push = _norm(wide(gradient) for gradient in gradients)
    pull = _norm(wide(f) * wide(a) for f, a in zip(importances, anchors, strict=True))
    if not 0 < push < float("inf") or not 0 < pull < float("inf"):
        return None
    return Suggestion(_FACTOR * push / pull, push, pull)


def _norm(tensors: Iterable[Tensor]) -> float:
    return float(sum(float(tensor.norm(dtype=torch.float64)) ** 2 for tensor in tensors)) ** 0.5
