"""Ranks and their agreement against scipy."""

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, rankdata

from lightning_cl.functional.ranking import kendall_w, ranks


def test_ranks_are_scipys():
    for values in ([3.0, 1.0, 2.0], [1.0, 1.0, 0.5, 2.0, 1.0], [0.0]):
        assert ranks(values) == rankdata([-v for v in values]).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_agreement_is_that_of_friedmans_test(seed: int):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4 if seed % 2 else 1000, (3, 6)).astype(float)
    expected = friedmanchisquare(*scores.T).statistic / (3 * (6 - 1))
    assert kendall_w([ranks(row.tolist()) for row in scores]) == pytest.approx(expected)


def test_one_thing_has_no_agreement_and_neither_have_ties_alone():
    assert kendall_w([[1.0], [1.0]]) is None
    assert kendall_w([[1.5, 1.5], [1.5, 1.5]]) is None
    assert kendall_w([]) is None
