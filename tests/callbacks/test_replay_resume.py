from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_cl.callbacks.replay import Replay
from lightning_cl.streams.datamodule import TaskDataModule
from lightning_cl.streams.replay_datamodule import ReplayDataModule
from lightning_cl.streams.task import Task
from lightning_cl.streams.tensor_data import TensorData
from tests.callbacks.replay_examples import Classifier, Numbered, fit, same


class Stops(Callback):
    """Dies like a killed process: nothing is written after the last checkpoint."""

    def __init__(self, after: int) -> None:
        self.after = after

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.after:
            raise RuntimeError("killed")


def task(number: int) -> Task:
    data = Numbered(number)
    classes = (f"class {2 * number}", f"class {2 * number + 1}")
    tensor = TensorData(data.x, data.y)
    return Task(number, f"task {number}", classes, (2 * number, 2 * number + 1), tensor, None, tensor, 0)


def learn(options: dict[str, Any], folder: Path, killed_at: int | None, wrap: bool) -> tuple[Tensor, dict[str, Any]]:
    """Two tasks; the second one is killed at a step, and resumed from its last checkpoint in new objects."""

    def second(replay: Replay, module: Classifier, *callbacks: Callback, **more: Any) -> Trainer:
        data: Any = TaskDataModule(task(1), batch_size=6)
        keep = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, save_last=False, filename="{step}")
        return fit(module, ReplayDataModule(data, replay) if wrap else data, replay, keep, *callbacks,
                   max_epochs=3, enable_checkpointing=True, **more)  # fmt: skip

    replay, module = Replay(10, **options), Classifier()
    module.net[2] = torch.nn.Identity()
    data = TaskDataModule(task(0), batch_size=6)
    fit(module, ReplayDataModule(data, replay) if wrap else data, replay)
    if killed_at is None:
        second(replay, module)
    else:
        with pytest.raises(RuntimeError, match="killed"):
            second(replay, module, Stops(killed_at))
        replay, module = Replay(10, **options), Classifier()
        module.net[2] = torch.nn.Identity()
        checkpoint = folder / f"step={killed_at // 3 * 3}.ckpt"
        assert torch.load(checkpoint, weights_only=True)["callbacks"]["Replay.replay"]["version"] == 1
        second(replay, module, ckpt_path=checkpoint)
    return module.weights, replay.state_dict()


@pytest.mark.parametrize("killed_at", [4, 6, 10])
@pytest.mark.parametrize(
    ("options", "wrap"),
    [
        ({}, False),
        ({"mode": "separate", "policy": "class_balanced"}, False),
        ({"fill": "step"}, False),
        ({"mode": "separate", "fill": "step"}, False),
        ({}, True),
        ({"fill": "step"}, True),
    ],
)
def test_a_killed_fit_ends_as_the_uninterrupted_one(
    options: dict[str, Any], wrap: bool, killed_at: int, tmp_path: Path
):
    weights, state = learn(options, tmp_path / "whole", None, wrap)
    weights_again, state_again = learn(options, tmp_path / "killed", killed_at, wrap)
    assert torch.equal(weights, weights_again)
    assert same(state, state_again)


def test_a_kill_between_training_and_consolidation_is_made_good(tmp_path: Path):
    class FailsAtTheEnd(Callback):
        def on_train_end(self, *args: Any) -> None:
            raise RuntimeError("killed")

    def run(*callbacks: Callback, ckpt_path: Any = None) -> Replay:
        replay = Replay(10)
        keep = ModelCheckpoint(tmp_path, save_last=True)
        fit(Classifier(), TaskDataModule(task(0), batch_size=6), *callbacks, replay, keep, enable_checkpointing=True,
            ckpt_path=ckpt_path)  # fmt: skip
        return replay

    with pytest.raises(RuntimeError, match="killed"):
        run(FailsAtTheEnd())
    resumed = run(ckpt_path=tmp_path / "last.ckpt")
    assert resumed.n_tasks == 1
    assert same(resumed.state_dict(), run().state_dict())
