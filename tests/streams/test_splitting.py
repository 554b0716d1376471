import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cl.streams.splitting import class_order, hold_out, stratified_shares, task_sizes


@given(total=st.integers(1, 60), parts=st.integers(1, 60))
def test_sizes_sum_up_and_differ_by_one_at_most(total, parts):
    if parts > total:
        with pytest.raises(ValueError, match=f"{total} classes for {parts} tasks"):
            task_sizes(total, parts, None, "classes")
        return
    sizes = task_sizes(total, parts, None, "classes")
    assert (sum(sizes), len(sizes)) == (total, parts)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=5), parts=st.integers(1, 5), seed=st.integers(0, 9))
def test_shares_are_disjoint_and_stratified(counts, parts, seed):
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    n = len(targets)
    sizes = [n // parts + (part < n % parts) for part in range(parts)]
    shares = stratified_shares(targets, sizes, seed)
    assert [len(share) for share in shares] == sizes
    assert sorted(torch.cat(shares).tolist()) == list(range(n))
    for share, size in zip(shares, sizes, strict=True):
        for label, count in enumerate(counts):
            expected = count * size / max(1, n)
            # evenly interleaved with random starts: within one sample of each class at each border
            assert abs(int((targets[share] == label).sum()) - expected) <= 2


@pytest.mark.parametrize(
    ("n", "fraction", "held"), [(100, 0.1, 10), (100, 0.0, 0), (3, 0.1, 1), (2, 0.99, 1), (1, 0.5, 0)]
)
def test_hold_out_sizes(n, fraction, held):
    kept, out = hold_out(torch.arange(n) % 10, fraction, 0)
    assert (len(kept), len(out)) == (n - held, held)
    assert sorted(torch.cat([kept, out]).tolist()) == list(range(n))


def test_orders_are_functions_of_the_seed():
    assert class_order(5, None) == [0, 1, 2, 3, 4]
    assert class_order(50, 1) == class_order(50, 1) != class_order(50, 2)
    targets = torch.arange(40) % 4
    assert torch.equal(hold_out(targets, 0.5, 1, "a")[1], hold_out(targets, 0.5, 1, "a")[1])
    assert not torch.equal(hold_out(targets, 0.5, 1, "a")[1], hold_out(targets, 0.5, 1, "b")[1])
