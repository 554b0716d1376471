"""Random numbers that are a function of (seed, sample, position): no state, any batch, any order.

A counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the mixing function
of SplitMix64 (Steele, Lea & Flood 2014), vectorised in int64, whose products wrap around as the algorithm needs.
"""

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


_GAMMA, _FIRST, _SECOND = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Logical shift right; torch's own keeps the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def random_bits(ids: Tensor, n: int, seed: int) -> Tensor:
    """64 random bits (N, n) int64 for each of the samples ``ids`` (N,)."""
    start = _mix(_mix(ids * _GAMMA + _signed(seed)))
    return _mix(start.unsqueeze(1) + torch.arange(1, n + 1) * _GAMMA)


def uniform(like: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Uniform numbers in [0, 1), float32, of the shape of ``like`` (N, ...).

    Example:
        >>> ids = torch.tensor([7, 3])
        >>> a, b = uniform(torch.empty(2, 4), ids, 1), uniform(torch.empty(2, 4), ids.flip(0), 1)
        >>> torch.equal(a, b.flip(0))
        True
    """
    bits = random_bits(ids, math.prod(like.shape[1:]), seed)
    return (_shifted(bits, 40).float() * 2**-24).view(like.shape)


def normal(like: Tensor, ids: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, float32, of the shape of ``like`` (N, ...), by Box and Muller's transform."""
    bits = random_bits(ids, math.prod(like.shape[1:]), seed)
    radius = (_shifted(bits, 40).float() + 1).mul_(2**-24).log_().mul_(-2).sqrt_()
    angle = (bits & (2**24 - 1)).float().mul_(2 * math.pi * 2**-24)
    return (radius * angle.cos_()).view(like.shape)
