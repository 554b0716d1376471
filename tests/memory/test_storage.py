"""Sizes in bytes, files, and references."""

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from lightning_cl.streams.tensor_data import TensorData
from tests.memory.helpers import check, held, make, offer, through_a_file


def test_a_size_in_bytes():
    memory = Memory(memory_bytes="4KB")
    assert memory.size == 0
    x, y = torch.zeros(50, 30), torch.zeros(50, dtype=torch.long)
    memory.add((x, y), y, {"logits": torch.zeros(50, 4)})
    assert memory.size == 4000 // (120 + 8 + 8 + 16)
    assert len(memory) == memory.size
    assert memory.nbytes <= 4000
    again = Memory(memory_bytes=4000)
    again.load_state_dict(through_a_file(memory.state_dict()))
    assert again.size == memory.size
    with pytest.raises(InputError, match=r"HINT: use memory_size=26"):
        Memory(26).load_state_dict(memory.state_dict())
    with pytest.raises(InputError, match=r"memory_bytes=100 for samples of 120 bytes; expected room for one. HINT"):
        Memory(memory_bytes=100).add(x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"memory_size=None; expected a number of samples, or memory_bytes. HINT"),
        ({"size": 3, "memory_bytes": 5}, r"memory_size=3 and memory_bytes=5; expected one of the two. HINT"),
        ({"memory_bytes": "many"}, r"memory_bytes='many'; expected a number of bytes, such as '200MB'.*HINT"),
        ({"memory_bytes": 0}, r"memory_bytes=0; expected a number of bytes.*HINT"),
        ({"size": 3, "storage": "tape"}, r"storage='tape'; expected 'ram' or 'disk'. HINT"),
        ({"size": 3, "storage": "disk"}, r"path=None with storage='disk'; expected a folder of its own.*HINT"),
        ({"size": 3, "path": "x"}, r"path='x' with storage='ram'; expected a folder.*HINT"),
        ({"size": 3, "stores": "features"}, r"stores='features'; expected 'samples' or 'references'. HINT"),
        (
            {"size": 3, "storage": "disk", "path": "x", "stores": "references"},
            r"stores='references' with storage=.*HINT",
        ),
        ({"size": 3, "storage": "disk", "path": ""}, r"path=''; expected a folder of its own. HINT"),
        ({"size": 3, "storage": "disk", "path": "/"}, r"path='/'; expected a folder of its own. HINT"),
        ({"size": 3, "storage": "disk", "path": "x/.."}, r"path='x/..'; expected a folder of its own. HINT"),
        ({"size": 3, "storage": "disk", "path": "a" * 300}, r"path='a+'; expected a folder of its own. HINT"),
        ({"size": 3, "storage": "disk", "path": __file__}, r"test_storage.py', a file; expected a folder.*HINT"),
        ({"size": 3, "storage": "disk", "path": "/usr"}, r"path='/usr', which holds 'bin'; expected an empty.*HINT"),
        ({"size": 3, "deletion_log": ""}, r"deletion_log=''; expected a file. HINT: deletion_log='deleted.txt'"),
        ({"size": 3, "deletion_log": "/"}, r"deletion_log='/'; expected a file. HINT"),
        ({"size": 3, "deletion_log": "a\0b"}, r"deletion_log='a.*b'; expected a file. HINT"),
        ({"size": 3, "deletion_log": "/usr"}, r"deletion_log='/usr', a folder; expected a file. HINT.*/usr/deleted"),
        ({"size": 3, "max_age": 0}, r"max_age=0; expected an integer >= 1. HINT"),
        ({"size": 3, "keep_states": 0}, r"keep_states=0; expected an integer >= 1. HINT"),
        ({"size": 3, "policy_options": {"speed": 3}}, r"policy_options=\{'speed': 3\} with policy='reservoir'.*HINT"),
        (
            {"size": 3, "policy": "time_weighted", "policy_options": {"time_constant": 2}},
            r"time_constant=2 .*HINT",
        ),
        ({"size": 3, "policy": "time_weighted", "policy_options": {"time_constant": 0}}, r"time_constant=0; exp.*HINT"),
        ({"size": 3, "policy": "loss_aware", "policy_options": {"power": -1}}, r"power=-1; expected a finite.*HINT"),
        ({"size": 3, "policy": "class_balanced", "policy_options": {"max_per_class": 0}}, r"max_per_class=0; .*HINT"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Memory(**options)


@pytest.mark.parametrize(
    ("policy", "missing"), [("task_balanced", "tasks"), ("herding", "features"), ("loss_aware", "losses")]
)
def test_what_a_policy_looks_at_must_be_given(policy: str, missing: str):
    with pytest.raises(InputError, match=rf"{missing} missing for 2 samples; expected one .* per sample.*HINT: give"):
        Memory(3, policy).add(torch.zeros(2), torch.zeros(2, dtype=torch.long))


def test_losses_must_be_finite():
    with pytest.raises(InputError, match=r"a loss of -1.0 for policy 'loss_aware'; expected finite losses.*HINT"):
        Memory(3, "loss_aware").add(torch.zeros(2), losses=torch.tensor([1.0, -1.0]))


def test_samples_leave_when_they_are_too_old():
    memory = make("reservoir", 100, max_age=30)
    for part in torch.arange(95).split(10):
        offer(memory, part)
    assert sorted(held(memory)) == list(range(65, 95))
    offer(memory, torch.arange(100, 140))
    assert sorted(memory.ids.tolist()) == list(range(110, 140)), "more at once than may be held"


def test_a_state_on_disk_stays_what_it_was_while_rows_are_overwritten(tmp_path: Path):
    memory = make("ring", 20, folder=tmp_path)
    states, contents = [], []
    for k, part in enumerate(torch.arange(300).split(10)):
        offer(memory, part)
        if k % 5 == 4:
            states.append(through_a_file(memory.state_dict()))
            contents.append(held(memory))
            assert "x" not in states[-1]["table"]["columns"], "the samples are not in the state"
    for state, content in list(zip(states, contents, strict=True))[-4:]:
        again = make("ring", 20, folder=tmp_path)
        again.load_state_dict(state)
        assert held(again) == content
        check(again)
    with pytest.raises(InputError, match=r"\d+ of 20 samples in .* have been replaced since this state.*last 4 states"):
        make("ring", 20, folder=tmp_path).load_state_dict(states[0])
    assert memory._table.index.made <= 20 * 7, "rows of states that are no longer kept are used again"


def test_going_on_from_a_state_on_disk_leaves_it_loadable(tmp_path: Path):
    memory = make("reservoir", 30, folder=tmp_path)
    offer(memory, torch.arange(50))
    state = through_a_file(memory.state_dict())
    content = held(memory)
    ends = []
    for _ in range(2):  # killed, and resumed from the same state again
        again = make("reservoir", 30, folder=tmp_path)
        again.load_state_dict(state)
        assert held(again) == content
        for part in torch.arange(50, 150).split(7):
            offer(again, part)
        ends.append(held(again))
    assert ends[0] == ends[1]


def test_deletion_reaches_files_and_states_that_refer_to_them(tmp_path: Path):
    memory = make("ring", 20, folder=tmp_path)
    offer(memory, torch.arange(5000, 5020), classes=1)
    state = through_a_file(memory.state_dict())
    offer(memory, torch.arange(5020, 5030), classes=1)
    assert memory.delete([5003, 5025, 5029]) == 2
    for file in tmp_path.glob("*.bin"):
        data = torch.from_file(str(file), size=file.stat().st_size, dtype=torch.uint8)
        values = data.view(torch.float32 if "leaf%3Ax" in file.name else torch.int64)
        assert not set(values.tolist()) & {5003, 5025, 5029, 2 * 5003, 2 * 5025}, file.name
    # killed before the next checkpoint
    again = make("ring", 20, folder=tmp_path)
    again.load_state_dict(state)
    assert sorted(held(again)) == [i for i in range(5000, 5020) if i != 5003]
    offer(again, torch.arange(5000, 5030), classes=1)
    check(again, {5003, 5025, 5029})


def test_longer_rows_on_disk_and_the_way_back(tmp_path: Path):
    memory = Memory(8, "ring", storage="disk", path=tmp_path)
    y = torch.zeros(4, dtype=torch.long)
    memory.add({"labels": torch.ones(4, 3, dtype=torch.long)}, y)
    state = through_a_file(memory.state_dict())
    memory.add({"labels": torch.ones(4, 5, dtype=torch.long)}, y)
    assert memory.at(slice(0, 1))["labels"].tolist() == [[1, 1, 1, -100, -100]]
    assert len(list(tmp_path.glob("leaf*.bin"))) == 1
    again = Memory(8, "ring", storage="disk", path=tmp_path)
    again.load_state_dict(state)
    assert again.at(slice(0, 4))["labels"].tolist() == [[1, 1, 1]] * 4


def test_files_that_are_not_there(tmp_path: Path):
    memory = make("reservoir", folder=tmp_path / "a")
    offer(memory, torch.arange(20))
    state = memory.state_dict()
    with pytest.raises(InputError, match=r"no file .*bin in .*; expected the files of the memory whose state.*HINT"):
        make("reservoir", folder=tmp_path / "b").load_state_dict(state)
    with pytest.raises(InputError, match=r"another storage= or stores=; expected the settings it was made with. HINT"):
        make("reservoir").load_state_dict(state)


def resident() -> int:
    """Bytes of the process that are not pages of files."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssAnon"))


def grows_by(folder: Path, total: int) -> int:
    """How much RAM a memory on disk of so many bytes of images takes, filled and sampled from."""
    batch = torch.randint(0, 255, (64, 3, 224, 224), dtype=torch.uint8)
    memory = Memory(total // batch[0].nbytes, storage="disk", path=folder)
    memory.add(batch)
    before, most = resident(), 0
    for _ in range(memory.size // 64 + 8):
        memory.add(batch)
        memory.sample(64)
        most = max(most, resident() - before)
    memory.state_dict()
    assert len(memory) == memory.size
    assert memory.nbytes > 0.99 * total
    return max(most, resident() - before)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_a_memory_on_disk_is_not_in_ram(tmp_path: Path):
    assert grows_by(tmp_path, 150_000_000) < 60_000_000


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own account of memory")
def test_ten_gigabytes_on_disk(tmp_path: Path):
    if shutil.disk_usage(tmp_path).free < 20e9:
        pytest.skip("less than 20 GB free")
    assert grows_by(tmp_path, 10_000_000_000) < 500_000_000
    for file in tmp_path.glob("*.bin"):
        os.remove(file)


def data(start: int = 0) -> TensorData:
    return TensorData(torch.arange(start, start + 30.0)[:, None].repeat(1, 2), torch.arange(30) % 3)


def test_references_are_read_again():
    memory = Memory(8, stores="references")
    for task in range(2):
        memory.bind(task, data(100 * task))
        x, y = data(100 * task).batch(torch.arange(30))
        memory.add((x, y), y, tasks=task, indices=torch.arange(30))
    found = memory.at(slice(0, 8))
    assert {int(value) // 100 for value in found["0"][:, 0]} == {0, 1}
    assert torch.equal(found["1"], memory.labels)
    slots = torch.tensor([5, 1, 1, 7])
    assert torch.equal(memory.at(slots)["0"], found["0"][slots])
    assert memory.nbytes == 8 * (8 + 8 + 8)
    state = through_a_file(memory.state_dict())
    assert "leaf:0" not in state["table"]["columns"]
    again = Memory(8, stores="references")
    again.load_state_dict(state)
    with pytest.raises(InputError, match=r"refers to data of task [01], which are not there; expected.*HINT"):
        again.sample(8)
    with pytest.raises(InputError, match=r"refers to data of task 0, which are not there"):
        again.require_bound()
    again.bind(0, data())
    with pytest.raises(InputError, match=r"data of task 1 that differ from those the memory refers to.*HINT: bind"):
        again.bind(1, data(101))
    again.bind(1, data(100))
    again.require_bound()
    assert torch.equal(again.at(slice(0, 8))["0"], found["0"])


def test_references_into_any_data_set():
    items = [({"a": torch.tensor([float(i)])}, f"n{i}") for i in range(10)]
    memory = Memory(4, stores="references")
    memory.bind(0, items)
    memory.add({"0": torch.zeros(10)}, tasks=0, indices=torch.arange(10))
    found = memory.at(slice(0, 4))
    assert len(found["0/a"]) == 4
    with pytest.raises(InputError, match=r"data of type 'generator' for a memory of references.*HINT"):
        memory.bind(1, (i for i in range(3)))
    with pytest.raises(InputError, match=r"without the position of each for a memory of references.*HINT"):
        memory.add({"0": torch.zeros(10)}, tasks=0)
    with pytest.raises(InputError, match=r"bind\(\) on a memory of samples; expected stores='references'. HINT"):
        Memory(3).bind(0, items)


def test_a_deletion_repeated_on_an_older_state_leaves_the_place_empty_as_long(tmp_path: Path):
    """With ``max_age`` a deleted sample's place is taken again when the sample would have become too old."""
    ram, disk = (
        Memory(8, "reservoir", 3, max_age=16, **options)  # type: ignore[arg-type]
        for options in ({}, {"storage": "disk", "path": tmp_path / "memory"})
    )
    for memory in (ram, disk):
        memory.add({"id": torch.arange(24)})
    states = [copy.deepcopy(ram.state_dict()), disk.state_dict()]
    held = sorted(disk.ids.tolist())  # type: ignore[union-attr]
    disk.delete(held[-4:])
    again = Memory(8, "reservoir", 3, max_age=16, storage="disk", path=tmp_path / "memory")
    again.load_state_dict(states[1])
    ram.load_state_dict(states[0])
    ram.delete(held[-4:])
    for start in range(24, 60, 4):
        for memory in (ram, again):
            memory.add({"id": torch.arange(start, start + 4)})
        assert sorted(ram.ids.tolist()) == sorted(again.ids.tolist())  # type: ignore[union-attr]


@pytest.mark.parametrize("storage", ["ram", "disk"])
def test_inputs_of_another_shape_are_padded_with_a_warning(
    storage: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    memory = Memory(9, storage=storage, path=tmp_path if storage == "disk" else None)
    logits = {"logits": torch.ones(2, 3)}
    memory.add({"x": torch.ones(2, 4, 4), "tokens": torch.ones(2, 5).long()}, extras=logits)
    memory.add({"x": torch.ones(2, 4, 4), "tokens": torch.ones(2, 7).long()}, extras={"logits": torch.ones(2, 6)})
    assert caplog.records == []
    for _ in range(2):
        memory.add({"x": torch.ones(2, 2, 2), "tokens": torch.ones(2, 5).long()}, extras=logits)
    (record,) = caplog.records
    assert "leaf 'x': (2, 2) beside (4, 4) in a memory" in record.getMessage()
    assert float(memory.at(slice(None))["x"].sum()) == 4 * 16 + 4 * 4
