"""Ids in whatever they come, and deletions that several memories write down in one log."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from tests.memory.helpers import through_a_file

BATCH = {"x": torch.arange(10.0), "id": torch.arange(10)}


def full(**options: Any) -> Memory:
    memory = Memory(10, **options)
    memory.add(BATCH)
    return memory


def left(memory: Memory) -> list[int]:
    return sorted(torch.as_tensor(memory.ids).tolist())


@pytest.mark.parametrize(
    "ids",
    [
        [1, 2],
        (i for i in (1, 2)),
        {1, 2},
        np.array([1, 2]),
        np.array([[1], [2]], dtype=np.uint8),
        [np.int64(1), np.int32(2)],
        [torch.tensor(1), 2],
        torch.tensor([1, 2], dtype=torch.int32),
    ],
    ids=["list", "generator", "set", "array", "column", "numpy integers", "tensors in a list", "tensor"],
)
def test_integers_of_any_kind_are_deleted_and_stay_out(ids: Any):
    memory = full()
    assert memory.delete(ids) == 2
    memory.add(BATCH)
    assert not {1, 2} & set(left(memory))
    again = Memory(10)
    again.load_state_dict(through_a_file(memory.state_dict()))
    again.add(BATCH)
    assert not {1, 2} & set(left(again))


@pytest.mark.parametrize("one", [3, np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_a_single_integer_is_one_id(one: Any):
    memory = full()
    assert memory.delete(one) == 1
    assert left(memory) == [0, 1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("one", ["anna", np.str_("anna"), ["anna"], np.array(["anna"])], ids=repr)
def test_a_single_string_is_one_id(one: Any):
    memory = Memory(10, id_fn=lambda batch: batch["who"])
    batch = {"x": torch.arange(4.0), "who": ["anna", "bob", "anna", "a"]}
    memory.add(batch)
    assert memory.delete(one) == 2
    memory.add(batch)
    assert sorted(set(memory.ids)) == ["a", "bob"]


def test_ids_that_come_as_an_array_are_found():
    memory = Memory(10, id_fn=lambda batch: np.array([5, 6, 7]))
    memory.add({"x": torch.arange(3.0)})
    assert memory.delete(torch.tensor([6])) == 1
    assert memory.ids == [5, 7]
    through_a_file(memory.state_dict())


def test_a_number_that_no_tensor_can_hold_is_not_held():
    memory = full()
    assert memory.delete([2**70, 4]) == 1


@pytest.mark.parametrize("ids", [[3.0], 3.5, None, [None], torch.tensor([1.0]), np.array([1.5]), b"ab", [True], [[1]]])
def test_what_is_no_id_is_refused(ids: Any):
    memory = full()
    with pytest.raises(InputError, match=r"id .* of type '\w+'; expected integers or strings. HINT: give the ids"):
        memory.delete(ids)
    assert len(memory) == 10


def test_ids_with_a_fraction_are_refused_when_they_come():
    with pytest.raises(InputError, match=r"ids of torch.float32; expected integers or strings. HINT: give id_fn="):
        Memory(5).add(torch.arange(3.0), ids=torch.arange(3.0))


def test_memories_of_other_seeds_share_a_log_that_was_not_there(tmp_path: Path):
    a, b = (full(seed=seed, deletion_log=tmp_path / "log") for seed in (0, 1))
    a.delete([1])
    b.delete([2])
    state = through_a_file(b.state_dict())
    for memory in (Memory(10, seed=1, deletion_log=tmp_path / "log"), full(seed=7, deletion_log=tmp_path / "log")):
        assert memory.deleted.among([1, 2, 3]).tolist() == [True, True, False]
    for seed in (0, 1, 2):
        new = full(seed=seed, deletion_log=tmp_path / "log")
        assert left(new) == [0, *range(3, 10)]
        new.load_state_dict(state)
        new.add(BATCH)
        assert not {1, 2} & set(left(new))


def test_a_state_and_a_log_of_another_salt_both_hold(tmp_path: Path):
    log = tmp_path / "log"
    alone = full(seed=0)
    alone.delete([5])
    full(seed=3, deletion_log=log).delete([6])
    state = through_a_file(alone.state_dict())
    memory = Memory(10, seed=0, deletion_log=log)
    memory.load_state_dict(state)
    memory.add(BATCH)
    assert not {5, 6} & set(left(memory))
    # the log has learnt what the state knew, once
    assert left(full(seed=9, deletion_log=log)) == [0, 1, 2, 3, 4, 7, 8, 9]
    before = log.read_bytes()
    Memory(10, seed=0, deletion_log=log).load_state_dict(memory.state_dict())
    assert log.read_bytes() == before


def test_a_deletion_before_a_state_is_loaded_holds_behind_it():
    state = full().state_dict()
    memory = Memory(10)
    memory.delete([4])
    memory.load_state_dict(state)
    assert left(memory) == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_logs_and_states_of_earlier_versions_are_read(tmp_path: Path):
    memory = full(seed=2, deletion_log=tmp_path / "new")
    memory.delete([1, 2])
    salt, *lines = (tmp_path / "new").read_text().splitlines()
    old = tmp_path / "old"
    old.write_text("\n".join([salt, *(line.partition(":")[2] for line in lines)]) + "\n")
    again = full(seed=0, deletion_log=old)
    again.delete([3])
    assert left(full(seed=5, deletion_log=old)) == [0, *range(4, 10)]
    state = memory.state_dict()
    state["deleted"]["hashes"] = state["deleted"]["hashes"][state["deleted"]["salt"]]
    loaded = Memory(10, seed=2)
    loaded.load_state_dict(state)
    loaded.add(BATCH)
    assert not {1, 2} & set(left(loaded))


@pytest.mark.parametrize("cut", [0, 3, 21, 25, 60])
def test_a_line_that_was_cut_off_costs_no_later_one(tmp_path: Path, cut: int):
    log = tmp_path / "log"
    full(deletion_log=log).delete([1])
    log.write_bytes(log.read_bytes()[:cut])
    full(seed=1, deletion_log=log).delete([2])
    memory = full(seed=3, deletion_log=log)
    assert 2 not in left(memory)
    assert set(range(10)) - set(left(memory)) <= {1, 2}
