"""Herding against a plain loop over all candidates."""

import pytest
import torch

from lightning_cl.functional import herding_order


def by_hand(features: list[list[float]], m: int) -> list[int]:
    n, d = len(features), len(features[0])
    mean = [sum(f[j] for f in features) / n for j in range(d)]
    chosen: list[int] = []
    for k in range(1, min(m, n) + 1):

        def distance(i: int, k: int = k) -> float:
            prefix = [*chosen, i]
            return sum((mean[j] - sum(features[p][j] for p in prefix) / k) ** 2 for j in range(d))

        chosen.append(min((i for i in range(n) if i not in chosen), key=distance))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_plain_loop(seed: int):
    features = torch.randn(25, 3, generator=torch.Generator().manual_seed(seed))
    order = herding_order(features, 12)
    assert order.tolist() == by_hand(features.double().tolist(), 12)
    assert order.dtype == torch.long
    assert herding_order(features, 5).tolist() == order[:5].tolist()


def test_every_sample_is_taken_once():
    features = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert sorted(herding_order(features, 50).tolist()) == list(range(7))
    assert herding_order(features, 0).tolist() == []
    assert herding_order(features[:0], 3).tolist() == []
    assert herding_order(torch.ones(4, 2), 3).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"m=-1.*HINT"):
        herding_order(features, -1)
