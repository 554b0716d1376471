"""Killed and resumed with every kind of memory: the weights and the memory of the uninterrupted run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl.callbacks.replay import Replay
from lightning_cl.files import load_state
from lightning_cl.sequence import run_sequence
from lightning_cl.streams.datamodule import TaskDataModule
from tests.callbacks.replay_examples import Classifier, fit
from tests.callbacks.test_replay_resume import Stops, task
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

KINDS: dict[str, dict[str, Any]] = {
    "task_balanced": {"policy": "task_balanced", "fill": "step"},
    "ring": {"policy": "ring", "fill": "step"},
    "gdumb": {"policy": "gdumb", "fill": "step"},
    "loss_aware": {"policy": "loss_aware", "fill": "step"},
    "time_weighted": {"policy": "time_weighted", "fill": "step", "policy_options": {"time_constant": 15}},
    "herding": {"policy": "herding"},
    "window": {"fill": "step", "max_age": 30},
    "disk": {"fill": "step", "storage": "disk"},
    "references": {"stores": "references"},
}


def make(kind: str, folder: Path) -> Replay:
    options = dict(KINDS[kind])
    if options.get("storage") == "disk":
        options["path"] = folder / "memory"
    return Replay(10, **options)


def learn(kind: str, folder: Path, killed_at: int | None) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
    def second(replay: Replay, net: Classifier, *callbacks: Any, **more: Any) -> None:
        keep = ModelCheckpoint(folder, every_n_train_steps=2, save_top_k=-1, filename="{step}")
        fit(net, TaskDataModule(task(1), batch_size=6), replay, keep, *callbacks, enable_checkpointing=True, **more)

    replay, net = make(kind, folder), Classifier()
    net.net[2] = torch.nn.Identity()
    fit(net, TaskDataModule(task(0), batch_size=6), replay)
    if killed_at is None:
        second(replay, net)
    else:
        with pytest.raises(RuntimeError, match="killed"):
            second(replay, net, Stops(killed_at))
        replay, net = make(kind, folder), Classifier()
        net.net[2] = torch.nn.Identity()
        if kind == "references":
            replay.memory.bind(0, task(0).train)
        second(replay, net, ckpt_path=folder / f"step={killed_at // 2 * 2}.ckpt")
    return net.weights, replay.state_dict(), replay.memory.at(slice(0, len(replay.memory)))["0"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_fit_ends_as_the_uninterrupted_one(kind: str, tmp_path: Path):
    weights, state, held = learn(kind, tmp_path / "whole", None)
    weights_again, state_again, held_again = learn(kind, tmp_path / "killed", 5)
    assert torch.equal(weights, weights_again)
    assert torch.equal(held, held_again)
    assert differences(state, state_again) == []


@pytest.mark.parametrize("kind", ["disk", "references"])
def test_a_killed_run_ends_as_the_uninterrupted_one(kind: str, tmp_path: Path):
    def run(folder: Path, kill_at: tuple[str, int] | None = None) -> Any:
        try:
            return run_sequence(
                module(), stream(), [make(kind, folder), Recorder(kill_at)], run_dir=folder, trainer=trainer(),
                batch_size=6, progress_bar=False, checkpoint_every_n_steps=2,
            )  # fmt: skip
        except Killed:
            return None

    run(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for kill_at in (("batch end", 5), ("train end", 8)):
        folder = tmp_path / kill_at[0]
        assert run(folder, kill_at) is None
        assert run(folder)["status"] == "finished"
        assert differences(contents(folder), expected) == []


def test_deleted_samples_do_not_come_back_from_a_kill(tmp_path: Path):
    def make_one() -> Replay:
        return Replay(100, fill="step", id_fn=lambda batch: batch[0][:, 0].long(), deletion_log=tmp_path / "log.txt")

    replay, net = make_one(), Classifier()
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    with pytest.raises(RuntimeError, match="killed"):
        fit(net, TaskDataModule(task(0), batch_size=6), replay, keep, Stops(3), enable_checkpointing=True)
    gone = replay.memory.ids[:5].tolist()
    assert replay.memory.delete(gone) == 5
    # killed here: the only checkpoint is older than the deletion
    replay = make_one()
    checkpoint = load_state(tmp_path / "step=2.ckpt")
    assert set(gone) & set(checkpoint["callbacks"]["Replay.replay"]["memory"]["table"]["columns"]["ids"].tolist())
    fit(Classifier(), TaskDataModule(task(0), batch_size=6), replay, ckpt_path=tmp_path / "step=2.ckpt")
    assert len(replay.memory) == 24 - 5
    assert not set(gone) & set(replay.memory.ids.tolist())
