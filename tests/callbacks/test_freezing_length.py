"""Phases that cannot come before the fit ends are named; of what may still come nothing is said."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

from lightning_cl import FreezingSchedule
from lightning_cl.errors import InputError
from tests.callbacks.freezing_examples import Net, train

HEAD: dict[str, Any] = {"thaw": "head"}
NECK = "re:^neck$"


def fit(schedule: FreezingSchedule, caplog: pytest.LogCaptureFixture, *others: Any, **options: Any) -> list[str]:
    """The warnings of a fit of four batches an epoch."""
    caplog.clear()
    with caplog.at_level(logging.WARNING, "lightning_cl"):
        train(Net(), schedule, *others, **options)
    return [record.getMessage() for record in caplog.records if record.name.startswith("lightning_cl")]


def phases(*rest: dict[str, Any]) -> FreezingSchedule:
    return FreezingSchedule(phases=[HEAD, *rest], table=False)


CASES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "the short form": (lambda: FreezingSchedule(), {"epochs": 1}, "phase 1 (all_but_head, epoch 1) .* of 1 epoch;"),
    "lp_ft": (
        lambda: FreezingSchedule(recipe="lp_ft", recipe_options={"epoch": 5}),
        {"epochs": 2},
        "phase 1 (all, epoch 5) .* of 2 epochs;",
    ),
    "a step": (lambda: phases({"thaw": "all", "step": 4}), {"epochs": 1}, "phase 1 (all, step 4) .* of 4 steps;"),
    "accumulated": (
        lambda: phases({"thaw": "all", "step": 4}),
        {"epochs": 2, "accumulate_grad_batches": 2},
        "phase 1 (all, step 4) .* of 4 steps;",
    ),
    "an epoch by steps": (
        lambda: phases({"thaw": "all", "epoch": 2}),
        {"epochs": -1, "max_steps": 8},
        "phase 1 (all, epoch 2) .* of 8 steps;",
    ),
    "a fraction of too few": (
        lambda: phases({"thaw": "all", "fraction": 0.8}),
        {"epochs": 1},
        "phase 1 (all, fraction 0.8) .* of 4 steps;",
    ),
    "those behind it": (
        lambda: phases({"thaw": NECK, "epoch": 3}, {"thaw": "all", "plateau": {"monitor": "constant"}}),
        {"epochs": 2},
        f"phase 1 ({NECK}, epoch 3), phase 2 (all, plateau of constant .* of 2 epochs;",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_come_is_said_once(case: str, caplog: pytest.LogCaptureFixture):
    schedule, options, said = CASES[case]
    (warning,) = fit(schedule(), caplog, **options)
    for part in said.split(" .* "):
        assert part in warning
    assert "HINT: train longer, or thaw earlier" in warning


@pytest.mark.parametrize(
    ("phase", "options"),
    [
        ({"epoch": 1}, {"epochs": 2}),
        ({"step": 3}, {"epochs": 1}),
        ({"fraction": 0.75}, {"epochs": 1}),
        ({"epoch": 1}, {"epochs": -1, "max_steps": 5}),
        ({"plateau": {"monitor": "constant"}}, {"epochs": 1}),
        ({"step": 9}, {"epochs": 1, "reload_dataloaders_every_n_epochs": 1}),
    ],
)
def test_what_may_come_is_not(phase: dict[str, Any], options: dict[str, Any], caplog: pytest.LogCaptureFixture):
    assert fit(phases({"thaw": "all", **phase}), caplog, **options) == []


def test_nor_where_the_number_of_steps_changes_in_the_fit(caplog: pytest.LogCaptureFixture):
    varying = GradientAccumulationScheduler({0: 4, 1: 1})
    assert fit(phases({"thaw": "all", "step": 3}), caplog, varying, epochs=2) == []


class Endless(IterableDataset):
    def __iter__(self) -> Any:
        return iter([(torch.zeros(1, 6, 6), i % 3) for i in range(12)])


def test_nor_where_the_length_of_an_epoch_is_not_known(caplog: pytest.LogCaptureFixture):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        callbacks=[phases({"thaw": "all", "step": 3})], enable_model_summary=False,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "lightning_cl"):
        trainer.fit(Net(), DataLoader(Endless(), batch_size=6))
    assert not [record for record in caplog.records if record.name.startswith("lightning_cl")]


def test_a_fit_that_is_resumed_past_it_says_nothing(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    options = {"epochs": 2, "accumulate_grad_batches": 1}
    schedule = phases({"thaw": "all", "step": 5})
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    assert fit(schedule, caplog, saver, enable_checkpointing=True, **options) == []
    shorter = {"resume": str(tmp_path / "step=6.ckpt"), "epochs": -1, "max_steps": 7}
    assert fit(phases({"thaw": "all", "step": 5}), caplog, **shorter) == []
    shorter = {"resume": str(tmp_path / "step=4.ckpt"), "epochs": -1, "max_steps": 5}
    assert len(fit(phases({"thaw": "all", "step": 5}), caplog, **shorter)) == 1


def test_the_table_says_so(capsys: pytest.CaptureFixture[str]):
    train(Net(), FreezingSchedule(phases=[HEAD, {"thaw": NECK, "epoch": 1}, {"thaw": "all", "epoch": 5}]), epochs=2)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"1 {NECK} epoch 1 2 72") for line in lines)
    assert any(line.startswith("2 all epoch 5 (never: 2 epochs) 6 568") for line in lines)
    behind = [HEAD, {"thaw": NECK, "step": 9}, {"thaw": "all", "plateau": {"monitor": "constant"}}]
    train(Net(), FreezingSchedule(phases=behind), epochs=2)
    printed = capsys.readouterr().out
    assert "step 9 (never: 8 steps)" in printed
    assert "(never: waits for phase 1)" in printed


class NotYet(Callback):
    """Behind the schedule, at the start of the fit."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        assert trainer.train_dataloader is None


def test_nothing_is_drawn_and_no_loader_is_made_for_it():
    def left(*callbacks: Any) -> torch.Tensor:
        torch.manual_seed(0)
        train(Net(), *callbacks, NotYet(), epochs=1)
        return torch.rand(1)

    late = FreezingSchedule(phases=[{"thaw": "all_but_head"}, {"thaw": "all", "step": 9}], table=False)
    assert torch.equal(left(late), left())


def test_until_a_fraction():
    module = Net()
    before = module.backbone[5].weight.detach().clone()
    train(module, FreezingSchedule(until_fraction=0.5, table=False), epochs=1)
    assert not torch.equal(module.backbone[5].weight, before)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"until_fraction": 1.0}, r"until_fraction=1\.0; expected a number in \(0, 1\), or None"),
        ({"until_fraction": "half"}, "until_fraction='half'; expected a number in"),
        ({"until_fraction": 0.5, "until_epoch": 2}, r"until_epoch=2 and until_fraction=0\.5; expected one of them"),
    ],
)
def test_bad_fractions(arguments: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        FreezingSchedule(**arguments)


@pytest.mark.parametrize(
    "schedule",
    [{"until_fraction": 0.5}, {"recipe": "lp_ft", "recipe_options": {"fraction": 0.5}}],
    ids=["the short form", "a recipe"],
)
def test_a_fraction_of_an_endless_training_is_refused_in_every_form(schedule: dict[str, Any]):
    with pytest.raises(InputError, match="a phase by 'fraction' in a training without an end"):
        train(Net(), FreezingSchedule(**schedule, table=False), epochs=-1)
