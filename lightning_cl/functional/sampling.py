"""Random choices for a replay memory; nothing here costs more than the batch it is about."""

import numpy as np
import torch
from torch import Tensor


def uniform_below(high: Tensor, generator: torch.Generator) -> Tensor:
    """One integer in ``[0, high[i])`` for each i, (N,) long.

    Drawn as ``floor(u * high)`` with a double-precision u: a value's probability is off by less than ``2**-53``.
    """
    u = torch.rand(len(high), generator=generator, dtype=torch.float64)
    # rounding up to ``high`` itself is possible from 2**53 on
    return torch.minimum((u * high).long(), high - 1)


def reservoir_slots(n: int, seen: int, capacity: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    r"""Which of the next ``n`` items of a stream enter a reservoir, and where: Vitter's algorithm R by the batch.

    Item number t (from 0) fills slot t while t < capacity; later it draws j uniformly from ``0 .. t`` and replaces
    slot j if j < capacity. After any number of items each one seen is in the reservoir with probability
    :math:`\min(1, capacity / seen)`, exactly, however the stream was cut into batches. Where several items of the batch
    draw one slot, the last wins, as it would one by one.

    Vitter, J. S.: Random sampling with a reservoir. ACM Transactions on Mathematical Software 11(1), 1985.

    Args:
        n: Items that arrive now.
        seen: Items that arrived before.
        capacity: Slots.
        generator: Source of the draws.

    Returns:
        Positions within the batch and their slots, both (K,) long, K <= min(n, capacity); slots are unique.

    Example:
        >>> positions, slots = reservoir_slots(3, 0, 5, torch.Generator())
        >>> positions.tolist(), slots.tolist()
        ([0, 1, 2], [0, 1, 2])
    """
    times = torch.arange(seen, seen + n)
    free = max(0, min(n, capacity - seen))
    slots = times.clone()
    slots[free:] = uniform_below(times[free:] + 1, generator)
    positions = (slots < capacity).nonzero().flatten()
    if free < n:
        last = dict(zip(slots[positions].tolist(), positions.tolist(), strict=True))
        positions = torch.tensor(list(last.values()), dtype=torch.long)
        return positions, torch.tensor(list(last), dtype=torch.long)
    return positions, slots[positions]


def reservoir_places(
    times: np.ndarray, capacity: np.ndarray | int, generator: torch.Generator, horizon: int | None = None
) -> np.ndarray:
    """The place that each item takes in its own stream's reservoir, or -1: algorithm R for several streams at once.

    In numpy, whose calls cost a fraction of torch's on arrays of a batch's length.

    Args:
        times: Number of each item in its stream, from 0, (N,) int64.
        capacity: Places of that stream's reservoir, (N,) int64, or one number for all.
        generator: Source of the draws; none is made while all items find free places.
        horizon: From this item on a stream draws as if it were always item ``horizon - 1``: older items fade.

    Example:
        >>> reservoir_places(np.array([0, 1, 0]), np.array([2, 2, 0]), torch.Generator()).tolist()
        [0, 1, -1]
    """
    late = times >= capacity
    all_late = late.all()
    if not all_late and not late.any():
        return times
    high = times + 1 if horizon is None else np.minimum(times + 1, horizon)
    u = torch.rand(len(times), generator=generator, dtype=torch.float64).numpy()
    places = (u * high).astype(np.int64)  # below ``high``, if that is below 2**53
    if not all_late:
        places = np.where(late, places, times)
    return np.where(places < capacity, places, -1)


def draw(population: int, n: int, generator: torch.Generator) -> Tensor:
    """``n`` of ``0 .. population-1``, (n,) long: without replacement if ``n <= population``, else with replacement.

    Costs O(n) for any population (a permutation of 1e6 costs 25 ms): repeated draws are thrown away and drawn again.

    Raises:
        ValueError: If there is nothing to draw from.
    """
    if population < 1:
        raise ValueError(f"a draw from {population} samples; expected at least 1. HINT: fill the memory first")
    if n > population:
        return torch.randint(population, (n,), generator=generator)
    if 3 * n >= population:
        return torch.randperm(population, generator=generator)[:n]
    chosen: dict[int, None] = {}
    while len(chosen) < n:
        # at most a third of all are taken, so that each round keeps two thirds of its draws on average
        chosen.update(dict.fromkeys(torch.randint(population, (n - len(chosen),), generator=generator).tolist()))
    return torch.from_numpy(np.fromiter(chosen, np.int64, n))


def draw_class_balanced(targets: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Positions of ``n`` samples, (n,) long: a class uniformly of those there are, then one of its samples uniformly.

    With replacement, each draw independent of the others. Costs one sort of the targets.

    Args:
        targets: Class of each sample, (N,) of integers.
        n: How many.
        generator: Source of the draws.

    Example:
        >>> picks = draw_class_balanced(torch.tensor([7, 7, 7, 3]), 1000, torch.Generator().manual_seed(0))
        >>> 400 < int((picks == 3).sum()) < 600
        True
    """
    order = targets.argsort(stable=True)
    counts = targets.unique(return_counts=True)[1]
    chosen = torch.randint(len(counts), (n,), generator=generator)
    starts = counts.cumsum(0) - counts
    return order[starts[chosen] + uniform_below(counts[chosen], generator)]
