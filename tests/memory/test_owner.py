"""A folder of files belongs to one memory."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.callbacks.replay import Replay
from lightning_cl.errors import InputError
from lightning_cl.memory import Memory
from lightning_cl.sequence import run_sequence
from tests.callbacks.replay_examples import Classifier, fit
from tests.memory.helpers import through_a_file
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

FOREIGN = r"path='.*', where the samples of another memory are; expected a folder of its own for each memory. HINT"
OTHERS = r"path='.*', where the samples of another memory are, not those of this state; expected the folder with.*HINT"


def make(folder: Path, seed: int = 0) -> Memory:
    return Memory(5, storage="disk", path=folder, seed=seed)


def filled(folder: Path, value: float, seed: int = 0) -> Memory:
    memory = make(folder, seed)
    memory.add({"x": torch.full((5,), value)})
    return memory


def held(memory: Memory) -> list[float]:
    return memory.at(slice(0, len(memory)))["x"].tolist()


def test_another_memory_gets_no_folder_that_has_an_owner(tmp_path: Path):
    first = filled(tmp_path, 1.0)
    state = through_a_file(first.state_dict())
    second = make(tmp_path, seed=1)
    with pytest.raises(InputError, match=FOREIGN):
        second.check_place()
    with pytest.raises(InputError, match=FOREIGN):
        second.add({"x": torch.full((5,), 2.0)})
    assert held(first) == [1.0] * 5
    again = make(tmp_path)
    again.load_state_dict(state)
    assert held(again) == [1.0] * 5


def test_a_state_is_not_read_from_another_memorys_folder(tmp_path: Path):
    one, two = (through_a_file(filled(tmp_path / name, value).state_dict()) for name, value in (("a", 1), ("b", 2)))
    for state, folder in ((one, "b"), (two, "a")):
        with pytest.raises(InputError, match=OTHERS):
            make(tmp_path / folder).load_state_dict(state)
    make(tmp_path / "a").load_state_dict(one)
    (tmp_path / "a" / "owner.json").write_text("no JSON")
    with pytest.raises(InputError, match=OTHERS):
        make(tmp_path / "a").load_state_dict(one)


def test_no_generator_is_touched_and_nothing_else_of_the_state_differs(tmp_path: Path):
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    one, two = (filled(tmp_path / name, 1.0).state_dict() for name in "ab")
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert one["table"]["owner"] != two["table"]["owner"]
    assert differences(one, two) == []


def test_states_of_earlier_versions_are_read(tmp_path: Path):
    state = through_a_file(filled(tmp_path, 1.0).state_dict())
    del state["table"]["owner"]
    with pytest.raises(InputError, match=OTHERS):
        make(tmp_path).load_state_dict(state)
    (tmp_path / "owner.json").unlink()
    for _ in range(2):
        memory = make(tmp_path)
        memory.load_state_dict(state)
        memory.add({"x": torch.full((5,), 3.0)})
        state = through_a_file(memory.state_dict())


def test_a_trainer_refuses_the_folder_before_the_first_step(tmp_path: Path):
    from lightning_cl.streams.datamodule import TaskDataModule
    from tests.callbacks.test_replay_resume import task

    filled(tmp_path, 1.0)
    net = Classifier()
    before = net.weights.clone()
    with pytest.raises(InputError, match=FOREIGN):
        fit(net, TaskDataModule(task(0), batch_size=6), Replay(10, storage="disk", path=tmp_path))
    assert torch.equal(net.weights, before)


def run(folder: Path, memory: Path, kill_at: Any = None, **options: Any) -> Any:
    options = {"batch_size": 6, "progress_bar": False, "checkpoint_every_n_steps": 2, "trainer": trainer(), **options}
    callbacks = [Replay(10, fill="step", storage="disk", path=memory), Recorder(kill_at)]
    try:
        return run_sequence(module(), stream(), callbacks, run_dir=folder, **options)
    except Killed:
        return None


def test_a_run_that_starts_anew_takes_its_folder_over_and_no_other_run_does(tmp_path: Path):
    memory = tmp_path / "memory"
    run(tmp_path / "a", memory)
    expected = contents(tmp_path / "a")
    with pytest.raises(InputError, match=FOREIGN):
        run(tmp_path / "b", memory, seed=1)
    # killed before it has written anything and while it fills
    for kill_at in (("epoch start", 0), ("batch end", 1), ("batch end", 5)):
        assert run(tmp_path / "a", memory, kill_at, resume="never") is None
        assert run(tmp_path / "a", memory)["status"] == "finished"
        assert differences(contents(tmp_path / "a"), expected) == []
    (tmp_path / "a" / "sequence.json").unlink()  # a run that nobody knows
    run(tmp_path / "a", memory)
    assert differences(contents(tmp_path / "a"), expected) == []


def test_a_run_may_be_moved_and_copied_but_two_do_not_share_files(tmp_path: Path):
    whole, outside = tmp_path / "whole", tmp_path / "memory"
    for folder, memory in ((whole, whole / "memory"), (tmp_path / "a", outside)):
        assert run(folder, memory, ("batch end", 5)) is None
    shutil.copytree(whole, tmp_path / "copy")
    assert run(tmp_path / "copy", tmp_path / "copy" / "memory")["status"] == "finished"
    assert run(whole, whole / "memory")["status"] == "finished"
    assert differences(contents(tmp_path / "copy"), contents(whole)) == []
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(InputError, match=OTHERS):
        run(tmp_path / "b", outside)
    shutil.rmtree(tmp_path / "a")  # then it was a move
    assert run(tmp_path / "b", outside)["status"] == "finished"
    assert json.loads((outside / "owner.json").read_text())["run"] == "../b"


def test_two_callbacks_of_one_run_do_not_share_a_folder(tmp_path: Path):
    callbacks = [Replay(10, storage="disk", path=tmp_path / "m", name=name, fill="step") for name in "ab"]
    with pytest.raises(InputError, match=FOREIGN):
        run_sequence(module(), stream(), callbacks, run_dir=tmp_path, batch_size=6, trainer=trainer())
