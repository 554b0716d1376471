"""A schedule beside Lightning's LearningRateFinder, which restores a checkpoint of before the fit's start."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateFinder, ModelCheckpoint

from lightning_cl import FreezingSchedule
from tests.callbacks.freezing_examples import Net, train

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


class Trained(Callback):
    """How many parameters each epoch begins with."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self.seen.append(sum(p.requires_grad for p in pl_module.parameters()))


class Searched(Net):
    lr = 0.1


def partly(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(list(parameters)[-2:], lr=0.1)


@pytest.mark.parametrize("optimizer", [None, partly], ids=["holds all", "holds the head"])
@pytest.mark.parametrize("schedule", [{"recipe": "lp_ft"}, {"freeze": "auto"}], ids=["recipe", "auto"])
def test_every_fit_begins_with_the_head(schedule: Any, optimizer: Any, tmp_path: Path):
    freezing, net = FreezingSchedule(**schedule, table=False), Searched(optimizer)
    for _ in range(2):
        finder, trained = LearningRateFinder(num_training_steps=3), Trained()
        train(net, finder, freezing, trained, epochs=2, default_root_dir=tmp_path)
        assert trained.seen[0] == 2
        assert bool(freezing.arguments.found) == freezing.arguments.auto


def test_a_resumed_fit_goes_on_with_what_was_thawed(tmp_path: Path):
    def schedule() -> FreezingSchedule:
        return FreezingSchedule(recipe="lp_ft", table=False)

    def fit(net: Net, *callbacks: Any, **options: Any) -> None:
        train(net, *callbacks, schedule(), epochs=3, default_root_dir=tmp_path, **options)

    whole, resumed, trained = Searched(partly), Searched(partly), Trained()
    keep = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(whole, keep, enable_checkpointing=True)
    finder = LearningRateFinder(num_training_steps=3, update_attr=False)
    fit(resumed, finder, trained, resume=tmp_path / "epoch=1.ckpt")
    assert trained.seen[0] == len(list(whole.parameters()))
