import pickle

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import ItemData, TaskLoader, TensorData
from tests.streams.helpers import JitterEach, NoisyItems, equal, numbered


def items(**kwargs) -> ItemData:
    dataset = NoisyItems()
    return ItemData(dataset, None, torch.tensor(dataset.targets), augment=JitterEach(), **kwargs)


def loader(data, **kwargs) -> TaskLoader:
    return TaskLoader(data, 5, shuffle=True, augment=True, seed=7, task_id=2, **kwargs)


def epoch(one: TaskLoader, number: int) -> list:
    one.set_epoch(number)
    return list(one)


def test_an_epoch_holds_every_sample_once_in_its_own_order():
    one = TaskLoader(numbered(), 5, shuffle=True)
    orders = [torch.cat([x.flatten() for x, _ in epoch(one, number)]).tolist() for number in (0, 1, 0)]
    assert sorted(orders[0]) == list(range(23))
    assert orders[0] == orders[2] != orders[1]
    assert len(one) == 5
    for other in ({"seed": 1}, {"task_id": 1}):
        assert (
            torch.cat([x.flatten() for x, _ in TaskLoader(numbered(), 5, shuffle=True, **other)]).tolist() != orders[0]
        )


@pytest.mark.parametrize("drop_last", [False, True])
def test_lengths(drop_last):
    one = TaskLoader(numbered(), 5, shuffle=True, drop_last=drop_last)
    assert [len(y) for _, y in one] == [5, 5, 5, 5] + [3] * (not drop_last)
    assert len(one) == len(list(one))


def test_plain_is_the_data_as_they_are():
    plain = TaskLoader(numbered(augment=JitterEach()), 5, shuffle=True, augment=True, drop_last=True).plain(4)
    assert torch.cat([x.flatten() for x, _ in plain]).tolist() == list(range(23))
    assert [len(y) for _, y in plain] == [4, 4, 4, 4, 4, 3]
    assert TaskLoader(numbered(), 5, shuffle=True).plain().batch_size == 5


def test_results_do_not_depend_on_the_number_of_workers():
    state = torch.get_rng_state()
    none, two = (loader(items(), num_workers=n) for n in (0, 2))
    for number in (0, 1):
        assert equal(epoch(none, number), epoch(two, number))
    assert not equal(epoch(none, 0), epoch(none, 1))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("make", [items, lambda: numbered(augment=JitterEach())])
def test_resumes_after_any_batch(make, workers):
    whole = [epoch(loader(make()), number) for number in (0, 1)]
    for done in range(len(whole[0]) + 1):
        first = loader(make(), num_workers=workers)
        first.set_epoch(0)
        stream = iter(first)
        for _ in range(done):
            next(stream)
        state = pickle.loads(pickle.dumps(first.state_dict()))
        assert state == {"version": 1, "epoch": 0, "batches": done}
        second = loader(make(), num_workers=workers)
        second.load_state_dict(state)
        # Lightning asks for an iterator, sets the epoch, and only then takes batches; a finished epoch is not repeated
        stream = iter(second)
        second.set_epoch(0 if done < 5 else 1)
        rest = list(stream)
        assert equal(rest, whole[0][done:] if done < 5 else whole[1])
        assert equal(epoch(second, 1), whole[1])


def test_another_epoch_forgets_the_loaded_place():
    one = loader(numbered())
    one.load_state_dict({"version": 1, "epoch": 0, "batches": 3})
    assert len(epoch(one, 1)) == 5
    assert one.state_dict() == {"version": 1, "epoch": 1, "batches": 5}


def test_nothing_is_computed_before_the_first_batch():
    one = loader(numbered())
    stream = iter(one)
    one.set_epoch(4)
    assert equal(list(stream), epoch(loader(numbered()), 4))


@pytest.mark.parametrize("n", [23, 1])
def test_processes_share_a_shuffled_epoch(monkeypatch, n):
    seen, lengths = [], set()
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        mine = [x for batch in TaskLoader(numbered(n), 5, shuffle=True) for x in batch[0].flatten().tolist()]
        lengths.add(len(mine))
        seen += mine
        assert len(TaskLoader(numbered(n), 5, shuffle=True)) == len(list(TaskLoader(numbered(n), 5, shuffle=True)))
        assert len(list(TaskLoader(numbered(23), 5))) == 5
    assert len(lengths) == 1
    assert set(seen) == set(range(n))
    assert len(seen) - n < 3


def test_what_lightning_looks_for():
    one = loader(numbered())
    assert one.sampler is one
    assert one.batch_sampler is None
    assert one.dataset.targets is not None
    one.set_epoch(3)
    assert one.epoch == 3


@pytest.mark.parametrize("size", [0, -1])
def test_batch_size_is_at_least_one(size):
    with pytest.raises(InputError, match=rf"^batch_size={size}; expected an integer >= 1\. HINT: set batch_size=128"):
        TaskLoader(numbered(), size)


def test_drop_last_leaves_something():
    with pytest.raises(InputError, match=r"^drop_last with batch_size=9 on 8 samples; .*HINT: set a smaller"):
        TaskLoader(TensorData(torch.zeros(8, 1), torch.zeros(8)), 9, drop_last=True)
