"""A schedule that waits for a plateau, resumed from every step, thaws where the uninterrupted one does."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torchmetrics import MeanMetric

from lightning_cl import FreezingSchedule
from lightning_cl.errors import InputError
from tests.callbacks.distributed_examples import in_two_processes
from tests.callbacks.freezing_examples import Net, train
from tests.resume.helpers import differences

#: of the batches of an epoch, so that the mean of some of them is better than that of all
VALUES = (0.5, 0.3, 0.2, 0.1)


class Logging(Net):
    """Logs ``metric`` in one place, and whatever the weights have to do with it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.mean = where, MeanMetric()
        self.backbone[3].p = self.drop.p = 0.0

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        value = torch.tensor(VALUES[batch_idx])
        if self.where == "training_step":
            self.log("metric", value, on_step=False, on_epoch=True)
        elif self.where == "training_step, smallest":
            self.log("metric", value, on_step=False, on_epoch=True, reduce_fx="min")
        elif self.where.startswith("training_step, "):
            synchronised = self.where.endswith("synchronised")
            self.log("metric", value / (1 + self.global_rank), on_step=False, on_epoch=True, sync_dist=synchronised)
        elif self.where == "torchmetrics":
            self.mean.update(value)
            self.log("metric", self.mean, on_step=False, on_epoch=True)
        return super().training_step(batch, batch_idx)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.where == "on_train_batch_end":
            self.log("metric", VALUES[batch_idx], on_step=False, on_epoch=True)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if self.where == "validation_step":
            self.log("metric", 1.0, sync_dist=self.trainer.world_size > 1)


def schedule() -> FreezingSchedule:
    options = {"plateau": {"monitor": "metric", "patience": 2}}
    return FreezingSchedule(recipe="lp_ft", recipe_options=options, table=False)


def fit(where: str, *callbacks: Any, resume: Path | None = None, **options: Any) -> dict[str, Any]:
    """All that a fit leaves."""
    module, freezing = Logging(where), schedule()
    trainer = train(
        module, freezing, *callbacks, resume=resume, enable_checkpointing=bool(callbacks), **{"epochs": 4, **options}
    )
    return {
        "weights": dict(module.state_dict()),
        "optimizer": trainer.optimizers[0].state_dict(),
        "schedule": freezing.state_dict(),
        "epoch": trainer.current_epoch,
        "steps": trainer.global_step,
    }


CASES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "validation": ("validation_step", {"val": True}, (3, 4, 8, 9, 12)),
    "twice an epoch": ("validation_step", {"val": True, "val_check_interval": 0.5, "epochs": 3}, (2, 3, 4, 6)),
    "every second epoch": ("validation_step", {"val": True, "check_val_every_n_epoch": 2, "epochs": 8}, (4, 8, 16)),
    "training": ("training_step", {}, (1, 4, 6, 8, 11, 12)),
    "training, validation beside": ("training_step", {"val": True}, (3, 4, 8, 12)),
    "smallest": ("training_step, smallest", {}, (3, 4, 8, 12)),
    "torchmetrics, an epoch's last step": ("torchmetrics", {"val": True}, (4, 8, 12)),
    "the fit's last step": ("validation_step", {"val": True, "epochs": 3}, (12,)),
}


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_a_step_equals_the_uninterrupted(case: str, tmp_path: Path):
    where, options, steps = CASES[case]
    whole = fit(where, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1), **options)
    if case != "the fit's last step":
        assert whole["schedule"]["thawed"] == 2
    for step in steps:
        assert differences(fit(where, resume=tmp_path / f"step={step}.ckpt", **options), whole) == [], step


@pytest.mark.parametrize("where", ["validation_step", "training_step"])
def test_resumed_behind_a_validation(where: str, tmp_path: Path):
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=False)
    whole = fit(where, saver, val=True)
    assert whole["schedule"]["thawed"] == 2
    for step in (4, 8, 12):
        again = fit(where, resume=tmp_path / f"step={step}.ckpt", val=True)
        assert differences(again, whole) == [], step


def test_resumed_while_another_phase_is_waited_for(tmp_path: Path):
    def run(*callbacks: Any, resume: Path | None = None) -> dict[str, Any]:
        phases = [
            {"thaw": "head"},
            {"thaw": "re:^neck$", "step": 6},
            {"thaw": "all", "plateau": {"monitor": "metric", "patience": 1}},
        ]
        module, freezing = Logging("training_step"), FreezingSchedule(phases=phases, table=False)
        train(module, freezing, *callbacks, resume=resume, epochs=4, enable_checkpointing=bool(callbacks))
        return {"weights": dict(module.state_dict()), "schedule": freezing.state_dict()}

    whole = run(ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1))
    assert whole["schedule"]["thawed"] == 3
    for step in (4, 5, 6, 7, 8):
        assert differences(run(resume=tmp_path / f"step={step}.ckpt"), whole) == [], step


@pytest.mark.parametrize(("where", "step"), [("torchmetrics", 3), ("on_train_batch_end", 3), ("on_train_batch_end", 4)])
def test_what_no_checkpoint_holds_is_refused(where: str, step: int, tmp_path: Path):
    fit(where, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1), epochs=2)
    said = r"does not hold what was logged of 'metric'.*; expected a metric logged as a number in training_step"
    with pytest.raises(InputError, match=said):
        fit(where, resume=tmp_path / f"step={step}.ckpt", epochs=2)


def test_a_checkpoint_of_before_this_was_kept_is_refused_where_it_matters(tmp_path: Path):
    fit("training_step", ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1), epochs=2)
    file = tmp_path / "step=4.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    del checkpoint["callbacks"][schedule().state_key]["plateau"]["metric"]
    torch.save(checkpoint, file)
    with pytest.raises(InputError, match="does not hold what was logged of 'metric'"):
        fit("training_step", resume=file, epochs=2)


SCRIPT = """
import sys
from pathlib import Path

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.resume.helpers import differences
from tests.resume.test_freezing_plateau import fit

if __name__ == "__main__":
    found = {}
    for where in ("training_step, its own in each process", "training_step, synchronised", "validation_step"):
        folder = Path(sys.argv[1]) / where.replace(" ", "_")
        options = {"val": where == "validation_step", "devices": 2, "strategy": "ddp"}
        saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        whole = fit(where, saver, **options)
        found[f"{where} thawed"] = whole["schedule"]["thawed"]
        for step in (2, 3, 4, 6):
            again = fit(where, resume=folder / f"step={step}.ckpt", **options)
            found[f"{where} {step}"] = differences(again, whole)
    torch.save(found, f"{sys.argv[1]}/rank{torch.distributed.get_rank()}.pt")
"""


@pytest.mark.long
def test_resumed_in_two_processes_equals_the_uninterrupted(tmp_path: Path):
    for found in in_two_processes(SCRIPT, tmp_path):
        assert {key: value for key, value in found.items() if value} == {
            f"{where} thawed": 2
            for where in ("training_step, its own in each process", "training_step, synchronised", "validation_step")
        }
