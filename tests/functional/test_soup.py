"""Greedy soups against a plain loop, and what they promise."""

import itertools

import pytest

from lightning_cl.functional import greedy_soup


def score(chosen: list[int]) -> float:
    """Something irregular, the same for the same set."""
    return (sum((i + 3) ** 3 for i in chosen) * 7919 % 101) / 100


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_as_a_plain_loop(order: tuple[int, ...], higher: bool):
    scores = [score([i]) for i in order]
    kept, tried = greedy_soup(scores, lambda chosen: score([order[i] for i in chosen]), higher)
    sign = 1 if higher else -1
    queue = sorted(range(4), key=lambda i: sign * scores[i], reverse=True)
    soup, best = [queue[0]], scores[queue[0]]
    for i in queue[1:]:
        value = score([order[j] for j in [*soup, i]])
        assert tried[i] == value
        if sign * value >= sign * best:
            soup, best = [*soup, i], value
    assert kept == soup
    assert sign * best >= max(sign * s for s in scores)


def test_a_tie_is_taken_in():
    assert greedy_soup([0.5, 0.5], lambda chosen: 0.5) == ([0, 1], [0.5, 0.5])


def test_one_model_is_its_own_soup():
    assert greedy_soup([0.4], lambda chosen: 1.0) == ([0], [0.4])
