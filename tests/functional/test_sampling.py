from collections import Counter
from itertools import combinations, pairwise

import pytest
import torch
from scipy.stats import chisquare

from lightning_cl.functional.sampling import draw, reservoir_slots, uniform_below


def one_by_one(n: int, seen: int, capacity: int, seed: int) -> dict[int, int]:
    """Algorithm R as in the textbook: slot -> item."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(n - max(0, min(n, capacity - seen)), generator=generator, dtype=torch.float64).tolist()
    held = {}
    for item in range(n):
        t = seen + item
        j = t if t < capacity else int(u.pop(0) * (t + 1))
        if j < capacity:
            held[j] = item
    return held


@pytest.mark.parametrize(
    ("n", "seen", "capacity"), [(20, 0, 7), (5, 0, 7), (30, 5, 7), (200, 50, 20), (3, 9, 1), (4, 9, 0)]
)
def test_the_batched_reservoir_is_the_one_by_one_algorithm(n: int, seen: int, capacity: int):
    for seed in range(20):
        positions, slots = reservoir_slots(n, seen, capacity, torch.Generator().manual_seed(seed))
        held = dict(zip(slots.tolist(), positions.tolist(), strict=True))
        assert len(held) == len(slots), "slots are unique"
        assert held == one_by_one(n, seen, capacity, seed)


@pytest.mark.parametrize("cuts", [(0, 6), (0, 1, 2, 3, 4, 5, 6), (0, 3, 4, 6)])
def test_every_subset_is_equally_likely_however_the_stream_is_cut(cuts: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    counts: Counter[tuple[int, ...]] = Counter()
    for _ in range(3000):
        held: dict[int, int] = {}
        for start, stop in pairwise(cuts):
            positions, slots = reservoir_slots(stop - start, start, 2, generator)
            held.update(zip(slots.tolist(), (positions + start).tolist(), strict=True))
        counts[tuple(sorted(held.values()))] += 1
    assert chisquare([counts[pair] for pair in combinations(range(6), 2)]).pvalue > 1e-3


@pytest.mark.parametrize(("population", "n"), [(5, 2), (40, 3), (7, 7)])
def test_draws_differ_and_are_uniform(population: int, n: int):
    generator = torch.Generator().manual_seed(0)
    first, included = Counter(), Counter()
    for _ in range(2000):
        chosen = draw(population, n, generator).tolist()
        assert len(set(chosen)) == n
        first[chosen[0]] += 1
        included.update(chosen)
    # inclusion counts are tied together, so that what this rejects is far off
    assert chisquare([first[i] for i in range(population)]).pvalue > 1e-3
    assert chisquare([included[i] for i in range(population)]).pvalue > 1e-3


def test_more_draws_than_samples_are_with_replacement():
    chosen = draw(3, 50, torch.Generator().manual_seed(0))
    assert chosen.shape == (50,)
    assert set(chosen.tolist()) == {0, 1, 2}


def test_a_draw_from_nothing_says_so():
    with pytest.raises(ValueError, match=r"from 0 samples; expected at least 1. HINT: fill"):
        draw(0, 3, torch.Generator())


def test_uniform_below_stays_below():
    high = torch.tensor([1, 2, 10, 2**53, 2**62])
    for seed in range(50):
        values = uniform_below(high, torch.Generator().manual_seed(seed))
        assert bool(((values >= 0) & (values < high)).all())
