"""A first guess of a penalty's lambda from the data."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cl.functional._chunks import wide

# Measured over four streams with Adam and SGD: lambda is within 2 points of the best for 1.4 .. 25 with the Fisher, for
# 0.7 .. 5.3 with SI (what came of it: docs/importance.md). Ratios of gradient norms, of curvatures and of losses have
# narrower windows.
_NATS = 5.0
# Less than this says that the outputs have saturated, not how much the weights matter.
_SATURATED = 1e-4


class Suggestion(NamedTuple):
    """A lambda, and the curvature that it stands against."""

    lambda_: float
    curvature: float


@torch.no_grad()
def suggest_lambda(importances: Iterable[Tensor], anchors: Iterable[Tensor]) -> Suggestion | None:
    r"""Lambda with which moving every parameter by its own size costs as much as a task is worth.

    .. math:: \lambda = \frac{5}{\max(\sum_i \Omega_i\,(\theta^*_i)^2,\ 10^{-4})}

    The penalty is then 2.5 where all parameters are 0, or doubled: the order of a cross-entropy in nats that a task
    begins with. It suits any importance (Fisher, SI, MAS, ones), because the penalty that it gives does not change when
    the importance is scaled, down to a sum of 1e-4: the Fisher of saturated outputs is no measure of what matters. For
    a loss that is not of order 1 multiply it (``lambda_schedule``).

    Args:
        importances: Importances.
        anchors: Their anchors, in the same order.

    Returns:
        The suggestion, or None if the sum is 0 or not finite.

    Example:
        >>> suggest_lambda([torch.tensor([0.5, 0.0])], [torch.tensor([2.0, 9.0])])
        Suggestion(lambda_=2.5, curvature=2.0)
    """
    total = 0.0
    for importance, anchor in zip(importances, anchors, strict=True):
        total += float((wide(importance) * wide(anchor).square()).sum(dtype=torch.float64))
    return Suggestion(_NATS / max(total, _SATURATED), total) if 0 < total < float("inf") else None
