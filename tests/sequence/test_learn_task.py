"""``learn_task`` by hand, and stages that methods declare."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl.errors import InputError
from lightning_cl.sequence import SequenceState, Settings, Stage, learn_task, open_run
from tests.resume.helpers import Killed, Recorder, contents, differences, learn, method, module, stream, trainer

OPTIONS: dict[str, Any] = {"batch_size": 6, "progress_bar": False, "checkpoint_every_n_steps": 2}


def state_of(run_dir: Path | None, name: str = "ewc+er", kill_at: Any = None, **options: Any) -> SequenceState:
    settings = Settings(run_dir=run_dir, method=name, trainer=trainer(), **OPTIONS, **options)
    return SequenceState(module(), stream(), [*method(name), Recorder(kill_at)], settings)


@pytest.mark.parametrize("name", ["naive", "ewc", "er", "ewc+er"])
def test_by_hand_equals_run_sequence(name: str, tmp_path: Path):
    _, results = learn(tmp_path / "run", name)
    by_hand, in_memory = state_of(tmp_path / "hand", name), state_of(None, name)
    for state in (by_hand, in_memory):
        for task in state.stream:
            assert learn_task(state, task) is state
        assert state.progress["task"] == 2
        rows = state.progress["rows"]
        assert [rows["0"], rows["1"]] == results["accuracy_matrix"]
    assert differences(contents(tmp_path / "hand"), contents(tmp_path / "run")) == []
    assert differences(dict(in_memory.module.state_dict()), dict(by_hand.module.state_dict())) == []
    for mine, theirs in zip(in_memory.method_callbacks, by_hand.method_callbacks, strict=True):
        assert differences(mine.state_dict(), theirs.state_dict()) == []
    assert list(tmp_path.glob("hand/results.json")) == []  # run_sequence's


def test_by_hand_goes_on_too(tmp_path: Path):
    learn(tmp_path / "run", "er")
    state = state_of(tmp_path / "hand", "er", ("batch end", 5))
    with pytest.raises(Killed):
        learn_task(state, state.stream[0])
    state = state_of(tmp_path / "hand", "er")
    learn_task(state, state.stream[0])
    assert state.callbacks[-1].events[0][2] == 4
    state = state_of(tmp_path / "hand", "er")
    assert open_run(state)
    for task in state.stream[state.progress["task"] :]:
        learn_task(state, task)
    assert differences(contents(tmp_path / "hand"), contents(tmp_path / "run")) == []


def test_tasks_come_in_order(tmp_path: Path):
    state = state_of(tmp_path)
    with pytest.raises(InputError, match="task 1 when task 0 is next"):
        learn_task(state, state.stream[1])
    learn_task(state, state.stream[0])
    with pytest.raises(InputError, match="task 0 when task 1 is next"):
        learn_task(state_of(tmp_path), state.stream[0])


class Centroids(Callback):
    """A method with a stage of its own, without a gradient; it draws random numbers."""

    state_key = "Centroids"

    def __init__(self, kill_in: str = "") -> None:
        self.kill_in = kill_in
        self.calls: list[tuple[str, int]] = []
        self.centres: dict[str, torch.Tensor] = {}

    def stages(self) -> list[Stage]:
        return [
            Stage("centroids", partial(self._run, name="centroids"), after="consolidate"),
            Stage("before", partial(self._run, name="before"), after="fit"),
        ]

    def _run(self, state: SequenceState, task: Any, name: str) -> None:
        self.calls.append((name, task.id))
        x = task.train.batch(torch.arange(len(task.train)))[0]
        self.centres[f"{name} {task.id}"] = x.mean(0) + torch.rand(())
        if self.kill_in == f"{name} {task.id}":
            raise Killed(name)

    def state_dict(self) -> dict[str, Any]:
        return {"centres": dict(self.centres)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.centres = dict(state_dict["centres"])


def test_a_stage_of_ones_own(tmp_path: Path):
    whole = Centroids()
    learn(tmp_path / "whole", callbacks=[whole])
    assert whole.calls == [("before", 0), ("centroids", 0), ("before", 1), ("centroids", 1)]
    for kill_in, again in {
        "before 0": [("before", 0), ("centroids", 0), ("before", 1), ("centroids", 1)],
        "centroids 0": [("centroids", 0), ("before", 1), ("centroids", 1)],
        "centroids 1": [("centroids", 1)],
    }.items():
        folder = tmp_path / kill_in
        learn(folder, callbacks=[Centroids(kill_in)])
        resumed = Centroids()
        learn(folder, callbacks=[resumed])
        assert resumed.calls == again
        assert differences(contents(folder), contents(tmp_path / "whole")) == []


def test_a_stage_is_not_run_again_after_a_kill_behind_it(tmp_path: Path):
    first = Centroids()
    learn(tmp_path, callbacks=[first], kill_at=("batch end", 3))
    assert first.calls == []
    first = Centroids(kill_in="centroids 0")
    learn(tmp_path, callbacks=[first])
    assert first.calls == [("before", 0), ("centroids", 0)]
    second = Centroids()
    events, _ = learn(tmp_path, callbacks=[second])
    assert second.calls == [("centroids", 0), ("before", 1), ("centroids", 1)]
    assert sum(event[0] == "train end" for event in events) == 1  # only the second task's


def test_stages_that_cannot_stand_where_they_want(tmp_path: Path):
    class Lost(Callback):
        def stages(self) -> list[Stage]:
            return [Stage("mine", lambda state, task: None, after="nothing")]

    with pytest.raises(InputError, match="stage 'mine' after 'nothing'"):
        learn(tmp_path, callbacks=[Lost()])
