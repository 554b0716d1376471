"""Resumed before, at and after every thaw, a fit ends as the uninterrupted one, bit for bit: the whole matrix."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lightning_cl import FreezingSchedule
from lightning_cl.streams import TaskLoader, TensorData
from tests.callbacks.freezing_schedulers import SCHEDULERS
from tests.resume.helpers import differences

# 8 steps in 4 epochs: in the middle of epoch 1, and at the start of epoch 3
PHASES: list[dict[str, Any]] = [
    {"thaw": "head"},
    {"thaw": "re:^body$", "step": 3},
    {"thaw": "all", "epoch": 3, "lr": 0.02},
]
AROUND = {"before the first": 2, "at the first": 3, "between": 5, "at the second": 6, "after the second": 7}
OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "Adam": lambda parameters: torch.optim.Adam(parameters, lr=0.1),
}
NORMS = {"BatchNorm": lambda: nn.BatchNorm1d(4), "GroupNorm": lambda: nn.GroupNorm(2, 4)}


class Net(LightningModule):
    """The optimizer holds head and body, and not the stem: one thaw of each kind."""

    def __init__(self, optimizer: str, norm: str, scheduler: str) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Linear(3, 4), NORMS[norm](), nn.ReLU())
            self.body = nn.Sequential(nn.Linear(4, 4), NORMS[norm](), nn.ReLU())
            self.head = nn.Linear(4, 2)
        self.optimizer, self.scheduler = optimizer, scheduler

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("constant", 1.0, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(self.head(self.body(self.stem(batch[0]))), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = OPTIMIZERS[self.optimizer]([*self.body.parameters(), *self.head.parameters()])
        interval = "epoch" if self.scheduler == "ReduceLROnPlateau" else "step"
        scheduler = {"scheduler": SCHEDULERS[self.scheduler](optimizer), "interval": interval, "monitor": "constant"}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


def fit(module: Net, *callbacks: Any, resume: Path | None = None) -> dict[str, Any]:
    """All that a fit leaves."""
    generator = torch.Generator().manual_seed(1)
    data = TensorData(torch.randn(12, 3, generator=generator), torch.arange(12) % 2)
    schedule = FreezingSchedule(phases=PHASES, table=False)
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[schedule, *callbacks], enable_checkpointing=bool(callbacks),
    )  # fmt: skip
    trainer.fit(module, TaskLoader(data, 6, shuffle=True), ckpt_path=resume, weights_only=True if resume else None)
    scheduler = trainer.lr_scheduler_configs[0].scheduler.state_dict()
    left = ("_get_lr_called_within_step",)
    return {
        "weights": dict(module.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "scheduler": {k: v for k, v in scheduler.items() if k not in left and not callable(v)},
        "schedule": schedule.state_dict(),
    }


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_equals_uninterrupted(optimizer: str, norm: str, scheduler: str, tmp_path: Path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    epochs = ModelCheckpoint(tmp_path, "epoch-{step}", every_n_epochs=1, save_top_k=-1)
    whole = fit(Net(optimizer, norm, scheduler), saver, epochs)
    assert whole["schedule"]["thawed"] == 3
    assert len(whole["optimizer"]["param_groups"]) == 2
    assert len(whole["optimizer"]["state"]) == 10
    for where, step in AROUND.items():
        # before an epoch is over, its mean is not known, and no checkpoint holds it
        name = "epoch-step" if scheduler == "ReduceLROnPlateau" and step % 2 == 0 else "step"
        again = fit(Net(optimizer, norm, scheduler), resume=tmp_path / f"{name}={step}.ckpt")
        assert differences(again, whole) == [], where
