"""Batches that are served several times."""

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import TaskLoader
from tests.streams.helpers import JitterEach, equal, numbered


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_each_batch_comes_several_times(times: int, drop_last: bool):
    options = {"shuffle": True, "augment": True, "drop_last": drop_last, "seed": 3}
    once = list(TaskLoader(numbered(augment=JitterEach()), 5, **options))
    loader = TaskLoader(numbered(augment=JitterEach()), 5, updates_per_batch=times, **options)
    batches = list(loader)
    assert len(batches) == len(loader) == times * len(once)
    for i in range(times):
        assert equal(batches[i::times], once)


def test_what_is_changed_in_place_comes_back_unchanged():
    loader = TaskLoader(numbered(), 5, updates_per_batch=3)
    seen = []
    for x, _ in loader:
        seen.append(x.clone())
        x.zero_()
    assert torch.equal(torch.cat(seen[2::3]).flatten(), torch.arange(23.0))


@pytest.mark.parametrize("stop", range(10))
def test_it_goes_on_in_the_middle_of_a_batch(stop: int):
    def make() -> TaskLoader:
        return TaskLoader(numbered(10), 3, shuffle=True, updates_per_batch=3, seed=1)

    whole, first, second = list(make()), make(), make()
    iterator = iter(first)
    start = [next(iterator) for _ in range(stop)]
    second.load_state_dict(first.state_dict())
    rest = list(second)
    assert equal(start + rest, whole)
    assert second.state_dict() == {"version": 1, "epoch": 0, "batches": 12}


def test_plain_data_come_once():
    assert len(TaskLoader(numbered(), 5, shuffle=True, updates_per_batch=3).plain()) == 5


def test_a_bad_number():
    with pytest.raises(InputError, match=r"updates_per_batch=0; expected an integer >= 1"):
        TaskLoader(numbered(), 5, updates_per_batch=0)
