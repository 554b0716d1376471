r"""What each parameter did for the loss on its way through a task: the accumulations of SI and of RWalk.

To first order, a step by :math:`\Delta\theta` lowers the loss by :math:`-\sum_i g_i \Delta\theta_i`, with the gradient
:math:`g` where the step began. The sum of :math:`-g_i \Delta\theta_i` over the steps is parameter i's own share: its
path integral (Zenke, Poole & Ganguli 2017, arXiv:1703.04200, eq. 3). It may be negative.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_cl.functional.penalty import add_quadratic_gradient_


def add_path_integral_(
    paths: Sequence[Tensor], gradients: Sequence[Tensor], starts: Sequence[Tensor], ends: Sequence[Tensor]
) -> None:
    r"""Add one step's :math:`-g\,(\theta_{end}-\theta_{start})` to the path integrals, in place.

    The movement is that of whatever moved the parameters, so any optimizer, clipping or decay is accounted for.

    Args:
        paths: n running integrals of the parameters' shapes, at least fp32.
        gradients: n gradients of the loss at ``starts``.
        starts: n parameters before the step.
        ends: n parameters after it.

    Raises:
        ValueError: if the four sequences differ in length.

    Example:
        >>> path = torch.zeros(2)
        >>> add_path_integral_([path], [torch.tensor([2.0, -1.0])], [torch.zeros(2)], [torch.tensor([-1.0, -1.0])])
        >>> path
        tensor([ 2., -1.])
    """
    # w -= g (end - start) has the form of a penalty's gradient: pull of strength g towards `start`
    add_quadratic_gradient_(ends, paths, gradients, starts, -1.0)


def synaptic_importance(
    path: Mapping[str, Tensor], start: Mapping[str, Tensor], end: Mapping[str, Tensor], xi: float
) -> dict[str, Tensor]:
    r"""SI's importance of one task (Zenke, Poole & Ganguli 2017, eq. 5).

    .. math:: \omega = \max\left(0, \frac{W}{(\theta_{end}-\theta_{start})^2 + \xi}\right)

    Args:
        path: Name to the path integral W over the task.
        start: Name to the parameter at the task's start.
        end: Name to the parameter at its end.
        xi: Damping, > 0; in units of squared parameters. It bounds the importance of what hardly moved.

    Returns:
        Name to a non-negative tensor. A negative W (the loss rose along this parameter) counts as 0, because a
        penalty with a negative weight would push away from the anchor.

    Raises:
        ValueError: if xi is not a positive number.

    Example:
        >>> moved = {"w": torch.tensor([1.0, 2.0])}
        >>> synaptic_importance({"w": torch.tensor([1.1, -3.0])}, {"w": torch.zeros(2)}, moved, 0.1)
        {'w': tensor([1., 0.])}
    """
    _check_positive("xi", xi)
    return {
        name: (value / ((end[name].to(value.dtype) - start[name]).square_().add_(xi))).clamp_(min=0)
        for name, value in path.items()
    }


def riemannian_score(loss_drop: Tensor, fisher: Tensor, start: Tensor, end: Tensor, epsilon: float) -> Tensor:
    r"""RWalk's score of one interval (Chaudhry et al. 2018, arXiv:1801.10112, section 4).

    .. math:: s = \max\left(0,
        \frac{\Delta L}{\frac{1}{2} F\,(\theta_{end}-\theta_{start})^2 + \epsilon}\right)

    The denominator is the distance that the parameter went, measured by how much the model's distribution changed.

    Args:
        loss_drop: Path integral over the interval, of the task's own loss.
        fisher: Running Fisher information at the interval's start, see :func:`moving_average`.
        start: Parameter at the interval's start.
        end: Parameter at its end.
        epsilon: Damping, > 0; in units of the loss.

    Returns:
        A non-negative tensor of the parameter's shape.

    Raises:
        ValueError: if epsilon is not a positive number.

    Example:
        >>> one = torch.ones(2)
        >>> riemannian_score(torch.tensor([3.0, -3.0]), 2 * one, 0 * one, one, 0.5)
        tensor([2., 0.])
    """
    _check_positive("epsilon", epsilon)
    distance = (end.to(loss_drop.dtype) - start).square_().mul_(fisher).mul_(0.5)
    return (loss_drop / distance.add_(epsilon)).clamp_(min=0)


def moving_average(previous: Tensor | None, new: Tensor, alpha: float) -> Tensor:
    r"""RWalk's running Fisher, :math:`F' = \alpha F_{new} + (1-\alpha) F` (Chaudhry et al. 2018, section 4).

    Args:
        previous: The average so far, or None at the first interval of all, whose own value then counts in full.
        new: Mean over the interval's steps of the squared batch gradient.
        alpha: Weight of the new value, in (0, 1]; the paper's 0.9 forgets quickly. Rows that ``previous`` lacks count
            in full.

    Raises:
        ValueError: if alpha is outside (0, 1].

    Example:
        >>> moving_average(torch.tensor([1.0]), torch.tensor([2.0]), 0.75)
        tensor([1.7500])
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha={alpha!r}; expected a number in (0, 1]. HINT: 1 keeps the newest value only")
    return new.clone() if previous is None else torch.lerp(with_corner(new, previous), new, alpha)


def average_scores(scores: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""RWalk's score over tasks, :math:`s' = \frac{1}{2}(s + s_{new})`; a first score is taken in full.

    Every task halves the influence of those before it, so the penalty does not get ever more rigid. New names, and new
    rows of a name, are taken in full; a name without a new score is kept as it is.

    Example:
        >>> average_scores({"w": torch.tensor([4.0])}, {"w": torch.tensor([2.0]), "b": torch.tensor([1.0])})
        {'w': tensor([3.]), 'b': tensor([1.])}
    """
    merged = {name: value.clone() for name, value in scores.items()}
    for name, value in new.items():
        merged[name] = (with_corner(value, scores[name]) + value) / 2 if name in scores else value.clone()
    return merged


def with_corner(values: Tensor, corner: Tensor) -> Tensor:
    """A copy of ``values`` with ``corner`` in its leading corner: what is known of rows there were, and new ones.

    Example:
        >>> with_corner(torch.ones(2, 2), torch.zeros(1, 2))
        tensor([[0., 0.],
                [1., 1.]])
    """
    merged = values.clone()
    merged[tuple(map(slice, corner.shape))] = corner.to(values)
    return merged


def scale_to_unit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""All tensors together scaled to [0, 1]: :math:`(v - \min) / (\max - \min)`; zeros where all are equal.

    Example:
        >>> scale_to_unit({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([5.0])})
        {'a': tensor([0.0000, 0.2500]), 'b': tensor([1.])}
    """
    filled = [value for value in tensors.values() if value.numel()]
    if not filled:
        return {name: value.clone() for name, value in tensors.items()}
    low, high = min(float(value.min()) for value in filled), max(float(value.max()) for value in filled)
    return {
        name: (value - low) / (high - low) if high > low else torch.zeros_like(value) for name, value in tensors.items()
    }


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < float("inf"):
        raise ValueError(
            f"{name}={value!r}; expected a finite number > 0. HINT: {name} bounds the importance of what never moved"
        )
