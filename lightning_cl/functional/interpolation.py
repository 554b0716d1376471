"""Weights between those of two models, and the mean of several."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.path_integral import with_corner


def interpolate(state_a: Mapping[str, Any], state_b: Mapping[str, Any], alpha: float) -> dict[str, Any]:
    r"""The weights between two models, of which b is a fine-tuned a (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903).

    .. math:: \theta = (1 - \alpha)\,\theta_a + \alpha\,\theta_b

    Floating-point entries are interpolated, buffers (running statistics of BatchNorm) too, in fp32 at least; at 0 and 1
    the result is a's and b's to the bit. Integer and boolean entries (``num_batches_tracked``), and what is not a
    tensor, are b's. The result has b's entries in b's shapes:

    - an entry that only b has is b's, one that only a has is left out;
    - an entry that has grown (rows of a head for new classes) is interpolated in its leading corner, which a has too;
      the rest is b's;
    - an entry with another number of dimensions, or smaller than a's somewhere, is b's.

    Args:
        state_a, state_b: State dicts; neither is changed, and the result shares no memory with them.
        alpha: From 0 to 1.

    Raises:
        ValueError: For another alpha.

    Example:
        >>> interpolate({"w": torch.zeros(1)}, {"w": torch.ones(2), "n": torch.tensor(3)}, 0.25)
        {'w': tensor([0.2500, 1.0000]), 'n': tensor(3)}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha!r}; expected a number from 0 to 1. HINT: 0 is the first model, 1 the second")
    return {name: _between(state_a.get(name), value, alpha) for name, value in state_b.items()}


def _between(a: Any, b: Any, alpha: float) -> Any:
    if not isinstance(b, Tensor):
        return b
    b = b.detach()
    if alpha == 1 or not isinstance(a, Tensor) or not b.is_floating_point() or not _is_corner(a, b):
        return b.clone()
    a = a.detach().to(b.device)
    part = b[tuple(map(slice, a.shape))]
    wide = torch.promote_types(b.dtype, torch.float32)
    mixed = a.to(wide) if alpha == 0 else torch.lerp(a.to(wide), part.to(wide), alpha)
    return with_corner(b, mixed.to(b.dtype))


def _is_corner(a: Tensor, b: Tensor) -> bool:
    return a.dim() == b.dim() and all(old <= new for old, new in zip(a.shape, b.shape, strict=True))


def average_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    r"""The mean of several models' weights, a uniform soup (Wortsman et al. 2022, arXiv:2203.05482).

    .. math:: \theta = \frac{1}{k} \sum_{i=1}^k \theta_i

    Sums are in fp64. Entries that are not floating-point tensors are the first model's.

    Args:
        states: State dicts with the same entries in the same shapes; the mean does not depend on their order beyond
            the rounding of fp64.

    Raises:
        ValueError: For none, or entries or shapes that differ.

    Example:
        >>> average_states([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])
        {'w': tensor([1.5000])}
    """
    if not states:
        raise ValueError("no states; expected at least one. HINT: give the models to average")
    if different := differing_entries(states[0], states[1:]):
        raise ValueError(f"{different}; expected the same entries in all. HINT: average models of one architecture")
    return {name: _mean([state[name] for state in states]) for name in states[0]}


def differing_entries(state: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> str:
    """In words, the first entry that is missing in one, or has another shape; empty if there is none.

    Example:
        >>> differing_entries({"w": torch.zeros(2)}, [{"w": torch.zeros(3)}])
        'w is (2,) and (3,)'
    """
    for other in others:
        if missing := sorted(state.keys() ^ other.keys()):
            return f"{missing[0]} is in one only"
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape != other[name].shape:
                return f"{name} is {tuple(value.shape)} and {tuple(other[name].shape)}"
    return ""


def _mean(values: list[Any]) -> Any:
    first = values[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        return first.detach().clone() if isinstance(first, Tensor) else first
    total = sum(value.detach().cpu().double() for value in values)
    return (total / len(values)).to(first)
