r"""The quadratic penalty as an exact proximal step behind the optimizer's own: stable for every lambda.

With the penalty's gradient in the loss's, an optimizer diverges where ``rate * lambda * F > 2``. The proximal step
solves, for each element and from the :math:`\theta` that the optimizer's step has reached,

.. math:: \arg\min_x \frac{1}{2 r} (x - \theta)^2 + \frac{\lambda}{2} F (x - \theta^*)^2
          = \frac{\theta + s\,\theta^*}{1 + s}, \qquad s = r \lambda F

(proximal gradient descent; Parikh & Boyd 2014, "Proximal Algorithms", section 4.2): a weighted mean, so nothing can
diverge for any s up to infinity. The rate r is what the optimizer's step multiplies a constant gradient with in the
long run: training then comes to rest where the loss's gradient and ``lambda * F * (theta - anchor)`` cancel, as it does
with the penalty's gradient in the optimizer.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from lightning_cl.functional._chunks import chunks, is_uniform, pays, wide
from lightning_cl.functional._step_rates import Rate, rule_of, step_rates

__all__ = ["Rate", "proximal_step_", "rule_of", "step_rates"]

# products of two of these are what fp32 can hold, so that 0 * inf cannot happen
_TINY, _HUGE = 1e-30, 1e30
_Group = tuple[Tensor, Tensor, Tensor]


@torch.no_grad()
def proximal_step_(
    parameters: Sequence[Tensor],
    importances: Sequence[Tensor],
    anchors: Sequence[Tensor],
    lambda_: float,
    rates: Sequence[float | Tensor | Rate],
) -> None:
    r"""Move parameters to the minimum of :math:`(x-\theta)^2/(2r) + \lambda F(x-\theta^*)^2/2`, in place.

    That is ``(theta + s * anchor) / (1 + s)`` with ``s = rate * lambda * F``, elementwise, formed in fp32 or wider.
    Where s is 0, theta stays as it is, bit for bit; where s overflows, theta becomes the anchor. Large CPU tensors are
    walked in chunks that stay in cache; the rest goes through ``torch._foreach_*``, with one temporary of its size.

    Args:
        parameters: The n parameters, changed in place.
        importances: n tensors of the parameters' shapes, >= 0, any float dtype.
        anchors: n tensors of the parameters' shapes, normally fp32.
        lambda_: Strength, >= 0.
        rates: n rates >= 0 of the step just made: numbers, tensors of the parameters' shapes, or what
            :func:`step_rates` returned.

    Raises:
        ValueError: if the four sequences differ in length.

    Example:
        >>> theta = torch.tensor([4.0, 4.0, 4.0])
        >>> proximal_step_([theta], [torch.tensor([0.0, 1.0, 1e30])], [torch.zeros(3)], 10.0, [0.1])
        >>> theta
        tensor([4., 2., 0.])
    """
    lengths = [len(parameters), len(importances), len(anchors), len(rates)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"parameters, importances, anchors, rates of lengths {lengths}; expected equal lengths. HINT: leave out "
            "the parameters that have no importance"
        )
    if lambda_ == 0:
        return
    lambda_ = _clamped(lambda_)
    constant: list[tuple[_Group, float]] = []
    adaptive: list[tuple[_Group, Rate]] = []
    for *given, rate in zip(parameters, importances, anchors, rates, strict=True):
        group = cast("_Group", tuple(given))
        if isinstance(rate, Rate):
            # of s: 1 / s = (scale * sqrt(moment) + offset) / F
            rate = Rate(rate.moment, _bounded(rate.scale / lambda_), _clamped(rate.offset / lambda_))
            if not is_uniform(*group, rate.moment):
                _step_plainly(*group, wide(rate.moment).sqrt().mul_(rate.scale).add_(rate.offset))
            elif pays(*group, rate.moment):
                _step_in_chunks(group, rate)
            else:
                adaptive.append((group, rate))
        elif isinstance(rate, Tensor):
            _step_plainly(*group, wide(rate).reciprocal().div_(lambda_).clamp_(min=_TINY))
        elif rate > 0:
            inverse = _clamped(1 / rate / lambda_)
            if not is_uniform(*group):
                _step_plainly(*group, inverse)
            elif pays(*group):
                _step_in_chunks(group, inverse)
            else:
                constant.append((group, inverse))
    if constant:
        inverses = torch._foreach_reciprocal([group[1] for group, _ in constant])
        torch._foreach_mul_(inverses, [inverse for _, inverse in constant])
        _step_together([group for group, _ in constant], inverses)
    if adaptive:
        inverses = torch._foreach_sqrt([rate.moment for _, rate in adaptive])
        _multiply([rate.scale for _, rate in adaptive], inverses)
        torch._foreach_add_(inverses, [rate.offset for _, rate in adaptive])
        torch._foreach_div_(inverses, [group[1] for group, _ in adaptive])
        _step_together([group for group, _ in adaptive], inverses)


def _multiply(scales: list[float | Tensor], tensors: tuple[Tensor, ...] | list[Tensor]) -> None:
    numbers = [scale for scale in scales if not isinstance(scale, Tensor)]
    if len(numbers) == len(scales):
        torch._foreach_mul_(tensors, numbers)
    else:
        torch._foreach_mul_(
            tensors, [torch.as_tensor(s, device=t.device) for s, t in zip(scales, tensors, strict=True)]
        )


def _step_together(groups: Sequence[_Group], inverses: tuple[Tensor, ...] | list[Tensor]) -> None:
    """From ``1 / s``, which is overwritten."""
    torch._foreach_add_(inverses, 1.0)
    torch._foreach_reciprocal_(inverses)
    torch._foreach_lerp_([group[0] for group in groups], [group[2] for group in groups], list(inverses))


def _step_in_chunks(group: _Group, rate: float | Rate) -> None:
    """The in-cache walk; all of one dtype, contiguous, on the CPU."""
    moments = [rate.moment] if isinstance(rate, Rate) else []
    for inverse, theta, importance, anchor, *moment in chunks(*group, *moments):
        if isinstance(rate, Rate):
            torch.sqrt(moment[0], out=inverse)
            inverse.mul_(rate.scale).add_(rate.offset).div_(importance)
        else:
            torch.reciprocal(importance, out=inverse)
            inverse.mul_(rate)
        theta.lerp_(anchor, inverse.add_(1.0).reciprocal_())


def _step_plainly(parameter: Tensor, importance: Tensor, anchor: Tensor, inverse: float | Tensor) -> None:
    """Any mixture of dtypes: everything in fp32 or wider until the last rounding; from ``F / s``."""
    theta = wide(parameter)
    weight = (inverse / wide(importance)).add_(1.0).reciprocal_()
    parameter.copy_(torch.lerp(theta, anchor.to(theta.dtype), weight.to(theta.dtype)))


def _bounded(value: float | Tensor) -> float | Tensor:
    return value.clamp(_TINY, _HUGE) if isinstance(value, Tensor) else _clamped(value)


def _clamped(value: float) -> float:
    return min(max(value, _TINY), _HUGE)
