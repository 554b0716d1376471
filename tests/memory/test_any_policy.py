"""What holds whatever the policy: rows stay together, loaded memories go on alike, the deleted and the old are gone."""

import random
from pathlib import Path

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from tests.callbacks.replay_examples import same
from tests.memory.helpers import NAMES, check, held, make, offer, through_a_file


@pytest.mark.parametrize("storage", ["ram", "disk"])
@pytest.mark.parametrize("max_age", [None, 60])
@pytest.mark.parametrize("policy", NAMES)
def test_anything_may_happen_in_any_order(policy: str, max_age: int | None, storage: str, tmp_path: Path):
    events, folder = random.Random(0), tmp_path if storage == "disk" else None
    memory, deleted, start = make(policy, folder=folder, max_age=max_age), set[int](), 0
    offered: list[int] = []
    for round_ in range(60):
        n = events.choice([1, 3, 8, 20])
        offer(memory, torch.arange(start, start + n), task=round_ // 15, classes=2 + round_ // 12)
        offered += [i for i in range(start, start + n) if i not in deleted]
        start += n
        assert memory.n_seen == len(offered), "what is refused is not counted"
        oldest = 0 if max_age is None else offered[-min(max_age, len(offered))]
        check(memory, deleted, oldest)
        if events.random() < 0.2 and len(memory):
            chosen = {events.choice(held(memory)), start + 2}
            deleted |= chosen
            memory.delete(list(chosen))
            check(memory, deleted, oldest)
        if events.random() < 0.25:
            state = through_a_file(memory.state_dict())
            memory = make(policy, folder=folder, max_age=max_age)
            memory.load_state_dict(state)
            assert same(memory.state_dict(), state)
            check(memory, deleted, oldest)
    assert len(memory) > 0


@pytest.mark.parametrize("max_age", [None, 70])
@pytest.mark.parametrize("policy", NAMES)
def test_a_loaded_memory_goes_on_as_the_saved_one(policy: str, max_age: int | None):
    one, other = make(policy, max_age=max_age), make(policy, max_age=max_age)
    for part in torch.arange(100).split(15):
        offer(one, part)
    one.delete(held(one)[:3])
    one.sample(4)
    other.load_state_dict(through_a_file(one.state_dict()))
    for k, part in enumerate(torch.arange(100, 260).split(23)):
        for memory in (one, other):
            offer(memory, part, task=1 + k // 3, classes=4 + k // 2)
        assert torch.equal(one.draw(5), other.draw(5))
    assert held(one) == held(other)
    assert same(one.state_dict(), other.state_dict())


@pytest.mark.parametrize("policy", NAMES)
def test_deleted_ids_never_come_back(policy: str):
    """0 of 1,000 ids, over offers again, saving and loading."""
    memory, numbers = make(policy, 2000), torch.arange(3000)
    offer(memory, numbers)
    gone = set(torch.tensor(held(memory))[torch.randperm(len(memory), generator=torch.Generator().manual_seed(1))]
               [:1000].tolist())  # fmt: skip
    assert memory.delete(sorted(gone)) == 1000
    drawn: set[int] = set()
    for _ in range(3):
        again = make(policy, 2000)
        again.load_state_dict(through_a_file(memory.state_dict()))
        memory = again
        offer(memory, numbers)
        drawn |= set(held(memory)) | set(memory.sample(len(memory))["id"].tolist())
    assert not gone & drawn


@pytest.mark.parametrize("policy", NAMES)
def test_nothing_of_a_deleted_sample_is_left(policy: str):
    memory = make(policy, 20)
    offer(memory, torch.arange(1000, 1100))
    offer(memory, torch.arange(1100, 1160), classes=7)
    victims = held(memory)[3:9]
    memory.delete(victims)
    for name, column in memory._table.columns.items():
        everything = column.data.flatten().tolist() if isinstance(column.data, torch.Tensor) else column.data
        for victim in victims:
            assert victim not in everything, name
            assert 2 * victim not in everything, name
            assert f"n{victim}" not in everything, name
    assert len(memory) == len(held(memory)) > 0
    state = through_a_file(memory.state_dict())
    assert not any(f"n{victim}" in str(state) for victim in victims), "the ids themselves are not kept either"


def test_samples_that_a_policy_drops_leave_nothing_either():
    memory = make("class_balanced", 12)
    offer(memory, torch.arange(100, 150), classes=1)
    before = held(memory)
    offer(memory, torch.arange(150, 250), classes=5)
    left = set(memory._table.columns["ids"].data.tolist())
    assert not (set(before) - set(held(memory))) & left


def test_ids_are_strings_or_what_a_function_says():
    memory = Memory(5, id_fn=lambda batch: batch["who"])
    memory.add({"x": torch.arange(3.0), "who": ["anna", "bert", "anna"]})
    assert memory.delete(["anna"]) == 2
    memory.add({"x": torch.arange(3.0, 5.0), "who": ["anna", "carl"]})
    assert memory.at(slice(0, 5))["who"] == ["bert", "carl"]
    assert memory.ids == ["bert", "carl"]
    assert memory.delete(["nobody"]) == 0


def test_ids_of_both_kinds_are_told_apart():
    memory = Memory(5)
    memory.add({"x": torch.arange(3.0), "sample_id": torch.tensor([4, 5, 6])})
    assert memory.delete(["5"]) == 0
    assert memory.delete(torch.tensor([5])) == 1


def test_deletions_in_a_log_hold_for_older_checkpoints_too(tmp_path: Path):
    memory = make("reservoir", deletion_log=tmp_path / "log.txt")
    offer(memory, torch.arange(10))
    before = through_a_file(memory.state_dict())
    memory.delete([3, 4])
    again = make("reservoir", deletion_log=tmp_path / "log.txt")
    again.load_state_dict(before)
    check(again, {3, 4})
    assert len(again) == 8
    text = (tmp_path / "log.txt").read_text()
    assert len(text.splitlines()) == 3
    (tmp_path / "log.txt").write_text("something else\n")
    with pytest.raises(InputError, match=r"log.txt', which is no log of deletions; expected a file of ours. HINT"):
        make("reservoir", deletion_log=tmp_path / "log.txt")


def test_what_cannot_be_deleted():
    memory = Memory(5)
    memory.add(torch.arange(3.0))
    with pytest.raises(InputError, match=r"delete\(\) on a memory of samples without ids; expected.*HINT: give id_fn"):
        memory.delete([1])
    with pytest.raises(InputError, match=r"2 ids for 3 samples; expected one id per sample. HINT"):
        memory.add(torch.arange(3.0), ids=torch.arange(2))
    with pytest.raises(InputError, match=r"a batch with ids for a memory of samples that have none.*HINT: give id_fn"):
        memory.add(torch.arange(3.0), ids=torch.arange(3))
    empty = Memory(5)
    empty.delete([1])
    with pytest.raises(InputError, match=r"a batch without ids for a memory of samples that have them.*HINT"):
        empty.add(torch.arange(3.0))
