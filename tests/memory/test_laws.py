"""The law of each policy: uniform ones by chi-square over many streams, the others exactly."""

from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from lightning_cl.functional.herding import herding_order
from lightning_cl.functional.sampling import reservoir_places
from lightning_cl.memory import Memory
from lightning_cl.memory._index import RowIndex
from lightning_cl.memory.policies import POLICIES, Offered

P = 1e-3


def herd(features: Tensor, m: int) -> Tensor:
    return herding_order(torch.nn.functional.normalize(features.double(), dim=1), m)


def holds(policy: str, seed: int, batches: list[dict[str, Any]], size: int, max_age: int | None = None,
          **options: Any) -> list[int]:  # fmt: skip
    """Numbers, in the order of the stream, of the samples that a policy holds in the end."""
    chooser, index = POLICIES[policy](**options), RowIndex()
    chooser.open(size, index, max_age)
    generator, start, numbers = torch.Generator().manual_seed(seed), 0, dict[int, int]()
    for batch in batches:
        n = len(next(iter(batch.values())))
        if max_age is not None:
            rows = torch.tensor([r for r, i in numbers.items() if i < start + n - max_age], dtype=torch.long)
            if len(rows):
                chooser.forget(rows, torch.tensor([numbers.pop(r) for r in rows.tolist()]), True)
                index.drop(rows)
        plan = chooser.offer(Offered(n, start, **batch), generator)
        held = set(index.rows(slice(None)).tolist())
        numbers = {r: i for r, i in numbers.items() if r in held}
        numbers.update(zip(plan.rows.tolist(), (plan.positions + start).tolist(), strict=True))
        start += n
    assert len(numbers) == index.length
    return sorted(numbers.values())


def plain(*sizes: int) -> list[dict[str, Any]]:
    return [{"labels": torch.zeros(n, dtype=torch.long)} for n in sizes]


def test_a_reservoir_is_uniform_over_ten_thousand_streams():
    """All streams at once: as many groups, each with its own reservoir of 3 among 12."""
    streams, n, size = 10_000, 12, 3
    times, generator = np.tile(np.arange(n), streams), torch.Generator().manual_seed(0)
    places = reservoir_places(times, size, generator).reshape(streams, n)
    held = np.full((streams, size), -1)
    for item in range(n):
        rows = np.flatnonzero(places[:, item] >= 0)
        held[rows, places[rows, item]] = item
    assert chisquare(np.bincount(held.flatten(), minlength=n)).pvalue > P
    sets = Counter(tuple(sorted(row)) for row in held.tolist())
    assert chisquare([sets[chosen] for chosen in combinations(range(n), size)]).pvalue > P


@pytest.mark.parametrize("policy", ["class_balanced", "task_balanced"])
def test_groups_are_uniform_within_over_ten_thousand_streams(policy: str):
    """One memory with ten thousand groups of 2 places; each group is a stream of 9, in three unequal parts."""
    streams, field = 10_000, "labels" if policy == "class_balanced" else "tasks"
    batches = [{field: torch.arange(streams).repeat(n)} for n in (3, 1, 5)]
    held = torch.tensor(holds(policy, 1, batches, 2 * streams))
    assert len(held) == 2 * streams
    groups, items = held % streams, held // streams
    assert torch.equal(groups.bincount(), torch.full((streams,), 2))
    assert chisquare(items.bincount(minlength=9).numpy()).pvalue > P
    pairs = Counter(tuple(pair) for pair in items[groups.argsort(stable=True)].view(-1, 2).sort(1).values.tolist())
    assert chisquare([pairs[pair] for pair in combinations(range(9), 2)]).pvalue > P


def test_a_group_that_has_shrunk_is_still_uniform():
    """Half of the groups appear late, and take half of the places."""
    streams = 5_000
    early, late = torch.arange(streams), torch.arange(streams, 2 * streams)
    batches = [{"labels": early.repeat(6)}, {"labels": torch.cat([late, early])}, {"labels": early.repeat(2)}]
    held = torch.tensor(holds("class_balanced", 2, batches, 4 * streams))
    labels = torch.cat([batch["labels"] for batch in batches])[held]
    # number of each sample within its own group
    everything = torch.cat([batch["labels"] for batch in batches])
    within = torch.empty_like(everything)
    for group_part in (everything.argsort(stable=True),):
        ordered = everything[group_part]
        first = torch.searchsorted(ordered, ordered)
        within[group_part] = torch.arange(len(ordered)) - first
    of_early = within[held][labels < streams]
    assert len(of_early) == 2 * streams
    assert chisquare(of_early.bincount(minlength=9).numpy()).pvalue > P


def test_a_deletion_leaves_the_rest_uniform():
    """Ten thousand groups of 2 among 8; what was in second place first is deleted after five."""
    streams, generator = 10_000, torch.Generator().manual_seed(4)
    chooser, index = POLICIES["class_balanced"](), RowIndex()
    chooser.open(2 * streams, index, None)
    number = torch.full((2 * streams,), -1)
    for start, n in ((0, 5), (5, 3)):
        plan = chooser.offer(Offered(n * streams, start * streams, labels=torch.arange(streams).repeat(n)), generator)
        number = torch.cat([number, torch.full((max(0, index.made - len(number)),), -1)])
        number[plan.rows] = start + plan.positions // streams
        if start == 0:
            rows = index.rows(slice(None))
            gone = rows[number[rows] == 1]
            chooser.forget(gone, None, False)
            index.drop(gone)
    held = number[index.rows(slice(None))]
    counts = held.bincount(minlength=8)
    assert int(counts[1]) == 0
    assert chisquare(counts[counts > 0].numpy()).pvalue > P
    assert abs(len(held) / streams - 2 * 7 / 8) < 0.03, "each of the seven with probability 2/8"


def test_a_window_is_uniform_and_full():
    """The last 6 of 15, in unequal batches, 3 at a time."""
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(1000):
        counts[tuple(holds("reservoir", seed, plain(4, 3, 1, 5, 2), 3, max_age=6))] += 1
    expected = [counts[chosen] for chosen in combinations(range(9, 15), 3)]
    assert sum(expected) == 1000
    assert chisquare(expected).pvalue > P


def test_time_weighted_fades_as_it_says():
    size, constant, n, runs = 4, 10, 24, 4000
    times, generator = np.tile(np.arange(n), runs), torch.Generator().manual_seed(5)
    places = reservoir_places(times, size, generator, constant).reshape(runs, n)
    held = np.full((runs, size), -1)
    for item in range(n):
        rows = np.flatnonzero(places[:, item] >= 0)
        held[rows, places[rows, item]] = item
    found = np.bincount(held.flatten(), minlength=n) / runs
    expected = [size / constant * (1 - 1 / constant) ** (n - max(r, constant)) for r in range(1, n + 1)]
    assert sum(expected) == pytest.approx(size), "the memory is always full"
    assert np.abs(found - expected).max() < 5 * 0.5 / runs**0.5
    kept = [holds("time_weighted", seed, plain(24), 4, time_constant=10) for seed in range(300)]
    assert abs(np.mean([len(set(each) & set(range(14, 24))) for each in kept]) - sum(expected[14:])) < 0.25


def test_ring_holds_the_newest_of_each_class():
    labels = torch.tensor([0, 0, 0, 1, 0, 1, 0, 2, 0, 1, 1, 0, 2, 2, 2, 2])
    for cuts in ([16], [1] * 16, [5, 3, 8], [7, 9]):
        held = holds("ring", 0, [{"labels": part} for part in labels.split(cuts)], 7)
        numbers = {c: (labels == c).nonzero().flatten().tolist() for c in range(3)}
        shares = {0: 3, 1: 2, 2: 2}
        assert held == sorted(i for c in range(3) for i in numbers[c][-shares[c] :])


def test_ring_after_a_deletion_holds_the_newest_of_the_others():
    memory = Memory(3, "ring")
    for i in range(5):
        memory.add({"x": torch.tensor([i]), "id": torch.tensor([i])}, torch.zeros(1, dtype=torch.long))
    memory.delete([3])
    memory.add({"x": torch.tensor([5]), "id": torch.tensor([5])}, torch.zeros(1, dtype=torch.long))
    assert sorted(memory.at(slice(0, 3))["x"].tolist()) == [2, 4, 5]


def test_herding_keeps_the_beginning_of_each_list():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(30, 5, generator=generator), torch.randn(20, 5, generator=generator)
    memory = Memory(12, "herding")
    labels = torch.arange(30) % 2
    memory.add(torch.arange(30), labels, features=first)
    expected = [members[herd(first[members], 6)] for members in ((labels == c).nonzero()[:, 0] for c in (0, 1))]
    assert sorted(memory.at(slice(0, 12))[""].tolist()) == sorted(torch.cat(expected).tolist())
    memory.add(torch.arange(30, 50), torch.full((20,), 2), features=second)
    expected = [part[:4] for part in expected] + [30 + herd(second, 4)]
    assert sorted(memory.at(slice(0, 12))[""].tolist()) == sorted(torch.cat(expected).tolist())


def test_herding_of_a_class_that_comes_again_is_in_proportion():
    features = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    memory, labels = Memory(8, "herding"), torch.zeros(30, dtype=torch.long)
    memory.add(torch.arange(30), labels, features=features[:30])
    memory.add(torch.arange(30, 40), labels[:10], features=features[30:])
    held = set(memory.at(slice(0, 8))[""].tolist())
    assert held == set(herd(features[:30], 6).tolist()) | set((30 + herd(features[30:], 2)).tolist())


def greedy(labels: list[int], size: int) -> Counter[int]:
    """GDumb's Algorithm 1; only how many of each class are held."""
    counts: Counter[int] = Counter()
    for y in labels:
        if y not in counts or counts[y] < size / len(counts):
            if sum(counts.values()) >= size:
                counts[max(counts, key=counts.__getitem__)] -= 1
            counts[y] += 1
    return counts


@pytest.mark.parametrize("seed", range(5))
def test_gdumb_against_the_algorithm(seed: int):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.randint(0, 1 + k, (40,), generator=generator) for k in range(6)])
    for cuts in (1, 7, 240):
        held = holds("gdumb", seed, [{"labels": part} for part in labels.split(cuts)], 17)
        assert Counter(labels[held].tolist()) == +greedy(labels.tolist(), 17)


def test_gdumb_keeps_first_samples_and_replaces_at_random():
    counts: Counter[int] = Counter()
    for seed in range(1000):
        held = holds("gdumb", seed, [{"labels": torch.tensor([0] * 9)}, {"labels": torch.tensor([1, 1, 1])}], 6)
        assert held[-3:] == [9, 10, 11]
        counts.update(held[:3])
    assert set(counts) == set(range(6)), "of the first class the first six were taken"
    assert chisquare([counts[i] for i in range(6)]).pvalue > P


def test_loss_aware_is_weighted_sampling_without_replacement():
    losses = torch.tensor([1.0, 2.0, 3.0, 4.0])
    pairs: Counter[tuple[int, ...]] = Counter()
    runs = 1500
    for seed in range(runs):
        batches: list[dict[str, Tensor]] = [{"losses": part} for part in losses.split([1, 3])]
        pairs[tuple(holds("loss_aware", seed, batches, 2))] += 1
    w, total = losses.tolist(), 10.0
    expected = {(i, j): w[i] / total * w[j] / (total - w[i]) + w[j] / total * w[i] / (total - w[j])
                for i, j in combinations(range(4), 2)}  # fmt: skip
    assert chisquare([pairs[p] for p in expected], [runs * e for e in expected.values()]).pvalue > P


def test_loss_aware_after_a_deletion_takes_only_what_would_be_held():
    chooser, index = POLICIES["loss_aware"](power=0), RowIndex()
    chooser.open(2, index, None)
    generator = torch.Generator().manual_seed(0)
    chooser.offer(Offered(50, 0, losses=torch.ones(50)), generator)
    rows = index.rows(slice(0, 1)).clone()
    chooser.forget(rows, None, False)
    index.drop(rows)
    twin = torch.Generator()
    twin.set_state(generator.get_state())
    entered = len(chooser.offer(Offered(40, 50, losses=torch.ones(40)), generator).rows)
    keys = torch.rand(40, generator=twin, dtype=torch.float64).log()
    assert entered <= int((keys > chooser.refused).sum()) + 1
    assert index.length <= 2
