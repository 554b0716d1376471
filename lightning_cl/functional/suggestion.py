"""A first guess of a penalty's lambda from the data."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_cl.functional._chunks import wide

# Measured over four streams, Adam and SGD, Fisher and SI (docs/importance.md): lambda is within 2 points of the best
# for 1.4 .. 5.3. Ratios of gradient norms, of curvatures, and of losses have narrower windows or none.
_NATS = 3.0


class Suggestion(NamedTuple):
    """A lambda, and the curvature that it stands against."""

    lambda_: float
    curvature: float


@torch.no_grad()
def suggest_lambda(importances: Iterable[Tensor], anchors: Iterable[Tensor]) -> Suggestion | None:
    r"""Lambda with which moving every parameter by its own size costs as much as a task is worth.

    .. math:: \lambda = \frac{3}{\sum_i \Omega_i\,(\theta^*_i)^2}

    The penalty is then 1.5 where all parameters are 0, or doubled: the order of a cross-entropy in nats that a task
    begins with. It has the right units for any importance (Fisher, SI, MAS, ones): the penalty that it gives does not
    change when the importance is scaled. For a loss that is not of order 1 multiply it (``lambda_schedule``).

    Args:
        importances: Importances.
        anchors: Their anchors, in the same order.

    Returns:
        The suggestion, or None if the sum is 0 or not finite.

    Example:
        >>> suggest_lambda([torch.tensor([0.5, 0.0])], [torch.tensor([2.0, 9.0])])
        Suggestion(lambda_=1.5, curvature=2.0)
    """
    total = 0.0
    for importance, anchor in zip(importances, anchors, strict=True):
        total += float((wide(importance) * wide(anchor).square()).sum(dtype=torch.float64))
    return Suggestion(_NATS / total, total) if 0 < total < float("inf") else None
