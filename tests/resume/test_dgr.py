"""Generative replay, killed anywhere, ends as the uninterrupted run, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl.callbacks._generator import ReplayGenerator
from tests.callbacks.dgr_examples import Net, as_triple, as_tuple, data, dgr
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, contents, differences, learn, module, trainer


def generative(**options: Any) -> Any:
    return dgr(decoder="gaussian", lr=1e-3, optimizer_state="keep", **options)


@pytest.mark.parametrize(
    "kill_at", [("batch start", 3), ("batch end", 5), ("train end", 8), ("epoch start", 4)], ids=str
)
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_a_run_killed_in_a_fit(kill_at: tuple[str, int], labels: str, tmp_path: Path):
    learn(tmp_path / "whole", "naive", callbacks=[generative(labels=labels)])
    expected = contents(tmp_path / "whole")
    _, results = learn(tmp_path / "killed", "naive", callbacks=[generative(labels=labels)], kill_at=kill_at)
    assert results is None
    _, results = learn(tmp_path / "killed", "naive", callbacks=[generative(labels=labels)])
    assert results["status"] == "finished"
    assert differences(contents(tmp_path / "killed"), expected) == []
    state = expected["learner"]["callbacks"]["DGR.dgr"]
    assert (state["n_tasks"], state["version"]) == (2, 1)
    assert state["replayed"] > 0


@pytest.mark.parametrize("moment", ["step", "sample", "keep"])
@pytest.mark.parametrize("call", [1, 9])
def test_a_run_killed_in_the_generator(moment: str, call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learn(tmp_path / "whole", "naive", callbacks=[generative()])
    original, calls = getattr(ReplayGenerator, moment), [0]
    call = {("keep", 9): 2, ("sample", 9): 6}.get((moment, call), call)

    def dying(self: ReplayGenerator, *args: Any, **options: Any) -> Any:
        """Dies after the change, before anything is written."""
        done = original(self, *args, **options)
        calls[0] += 1
        if calls[0] == call:
            raise Killed
        return done

    monkeypatch.setattr(ReplayGenerator, moment, dying)
    _, results = learn(tmp_path / "killed", "naive", callbacks=[generative()])
    assert results is None
    monkeypatch.undo()
    learn(tmp_path / "killed", "naive", callbacks=[generative()])
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []


def test_a_run_with_task_ids(tmp_path: Path):
    options: Any = {"callbacks": [generative()], "trainer": trainer(max_epochs=1)}

    def run(name: str, **more: Any) -> Any:
        from lightning_cl.streams import build_stream
        from tests.streams.helpers import classes

        tasks = build_stream(
            classes(6), scenario="task_incremental", classes_per_task=2, normalize=(40.0, 30.0), seed=5
        )
        return learn(tmp_path / name, "naive", stream=tasks, module=module(head="multi"),
                     **{**options, "callbacks": [generative()]}, **more)[1]  # fmt: skip

    run("whole")
    assert run("killed", kill_at=("batch end", 3)) is None
    run("killed")
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []


class Dies(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise Killed


@pytest.mark.parametrize("structure", [as_tuple, as_triple])
@pytest.mark.parametrize("killed_at", [5, 8])
def test_lightnings_own_checkpoints(structure: Any, killed_at: int, tmp_path: Path):
    def ordered(task: int) -> Any:
        return torch.utils.data.DataLoader(
            data(task).dataset, batch_size=6, collate_fn=data(task, structure).collate_fn
        )

    def learnt(folder: Path, die: bool) -> Any:
        callback, net = dgr(), Net()
        fit(net, ordered(0), callback, max_epochs=3)
        keep: Any = lambda: ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, filename="{step}")  # noqa: E731
        more: Any = {"max_epochs": 3, "enable_checkpointing": True}
        if die:
            with pytest.raises(Killed):
                fit(net, ordered(1), callback, keep(), Dies(killed_at), **more)
            callback, net = dgr(), Net()
            more["ckpt_path"] = folder / f"step={killed_at // 4 * 4}.ckpt"
        fit(net, ordered(1), callback, keep(), **more)
        return net.weights, callback.state_dict()

    weights, state = learnt(tmp_path / "whole", False)
    again, state_again = learnt(tmp_path / "killed", True)
    assert torch.equal(weights, again)
    assert differences(state, state_again) == []
