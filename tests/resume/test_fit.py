"""A fit that is killed at any of its steps goes on as if it had not: weights, learning rates, validations, hooks."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau, StepLR

from lightning_cl.files import load_state
from lightning_cl.sequence import run_sequence
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

PLATEAU = {
    "scheduler": partial(ReduceLROnPlateau, patience=0, factor=0.5, threshold=0.2),
    "monitor": "val_loss",
}


class StopsOnce(EarlyStopping):
    """Asks to stop after the first epoch and never again."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 0:
            trainer.should_stop, self.stopped_epoch = True, 1


STOPPING = partial(EarlyStopping, "val_loss", min_delta=0.1, patience=2)
#: name -> options of the trainer, of the module, of run_sequence, callbacks of the trainer
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], list[Callable[[], Callback]]]] = {
    "epochs": ({"max_epochs": 3}, {"scheduler": partial(StepLR, step_size=2)}, {"validation": 0.0}, []),
    "steps, each with its rate": (
        {"max_epochs": -1, "max_steps": 8},
        {"scheduler": partial(OneCycleLR, max_lr=0.1, total_steps=8), "scheduler_interval": "step"},
        {"validation": 0.0},
        [],
    ),
    "validation, plateau, best": ({"max_epochs": 4}, PLATEAU, {"select": "best", "monitor": "val_loss",
                                                              "monitor_mode": "min"}, []),
    "stopped early": ({"max_epochs": 12}, {}, {"batch_size": 8}, [STOPPING]),
    "stopped early, but not too early": ({"max_epochs": 12, "min_epochs": 5}, {}, {"batch_size": 8}, [STOPPING]),
    "asked once to stop early": ({"max_epochs": 7, "min_epochs": 3}, {}, {"batch_size": 8},
                                 [partial(StopsOnce, "val_loss")]),
    "validation inside epochs": ({"max_epochs": 3, "val_check_interval": 2}, {}, {"select": "best"}, [STOPPING]),
    "validation across epochs": (
        {"max_steps": 9, "val_check_interval": 2, "check_val_every_n_epoch": None, "max_epochs": -1}, {}, {}, []
    ),
    "validation every other epoch": ({"max_epochs": 4, "check_val_every_n_epoch": 2}, {}, {"select": "best"}, []),
    "plateau by a value of an epoch before": (
        {"max_epochs": 4, "log_every_n_steps": 4}, {**PLATEAU, "monitor": "train_loss"}, {"validation": 0.0}, []
    ),
    "two batches a step": ({"max_epochs": 3, "accumulate_grad_batches": 2}, PLATEAU, {}, []),
    "two batches a step, part of an epoch": (
        {"max_epochs": 3, "accumulate_grad_batches": 2, "limit_train_batches": 3}, {}, {"validation": 0.0}, []
    ),
    "one batch an epoch": ({"max_epochs": 4}, PLATEAU, {"batch_size": 64}, []),
    "clipped": ({"max_epochs": 2, "gradient_clip_val": 0.05}, {}, {"optimizer_state": "keep"}, []),
}  # fmt: skip


def run(case: str, run_dir: Path, kill_at: tuple[str, int] | None = None, every: int = 1) -> tuple[Any, ...]:
    """Events and results of a run of one task; no results if it was killed."""
    options, of_module, settings, callbacks = CASES[case]
    settings = {"validation": 0.25, "batch_size": 5, **settings}
    recorder = Recorder(kill_at)
    try:
        results = run_sequence(
            module(**of_module),
            stream(n_classes=2, validation=settings.pop("validation")),
            [recorder],
            run_dir=run_dir,
            trainer=trainer(**options, callbacks=[make() for make in callbacks]),
            checkpoint_every_n_steps=every,
            progress_bar=False,
            **settings,
        )
    except Killed:
        results = None
    return recorder.events, results


@pytest.fixture
def snapshots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the run folder "whole", as it was after each write of a fit's checkpoint: what a kill leaves."""
    copies: list[Path] = []
    replace = os.replace

    def replaced(source: Path, target: Path) -> None:
        replace(source, target)
        if target.match("whole/checkpoints/fit-*.ckpt"):
            copies.append(tmp_path / f"copy {len(copies)}")
            shutil.copytree(tmp_path / "whole", copies[-1])

    monkeypatch.setattr("lightning_cl.callbacks._fit_checkpoint.os.replace", replaced)
    return copies


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_every_checkpoint(case: str, tmp_path: Path, snapshots: list[Path]):
    whole, _ = run(case, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    steps = whole[-1][2]
    assert len(snapshots) == steps - 1  # after every step but the last, which is followed by the boundary
    assert whole[-1][0] == "train end"
    for done, folder in enumerate(snapshots, start=1):
        shutil.copytree(folder / "checkpoints", folder / "before")
        events, results = run(case, folder)
        assert results["status"] == "finished"
        assert events[0][2] == done
        saved = load_state(next((folder / "before").glob("fit-*.ckpt")))
        tracked = saved["loops"]["fit_loop"]["epoch_progress"]["total"]
        if saved["callbacks"]["FitCheckpoint"]["where"] == "between epochs":
            assert len(set(tracked.values())) == 1, folder.name
        assert events == whole[len(whole) - len(events) :], folder.name
        assert differences(contents(folder), expected) == [], folder.name


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("case", ["validation inside epochs", "two batches a step"])
def test_no_more_steps_are_repeated_than_asked_for(case: str, every: int, tmp_path: Path):
    whole, _ = run(case, tmp_path / "whole", every=every)
    expected = contents(tmp_path / "whole")
    steps = whole[-1][2]
    most = 0
    for place in [("batch end", step) for step in range(every, steps + 1, 2)] + [("train end", steps)]:
        folder = tmp_path / f"{place[0]} {place[1]}"
        run(case, folder, place, every)
        after, _ = run(case, folder, every=every)
        # the killed run had done the step at whose end it was killed
        repeated = place[1] - after[0][2]
        most = max(most, repeated)
        assert repeated <= every, place
        assert after == whole[len(whole) - len(after) :], place
        assert differences(contents(folder), expected) == [], place
    assert most == every
