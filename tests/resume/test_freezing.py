"""A run that is killed before, at or after a thaw, in any task, ends as the uninterrupted one, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import EWC, L2SP, FreezingSchedule, Replay
from lightning_cl.sequence import run_sequence
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

PHASES: list[dict[str, Any]] = [
    {"thaw": "head"},
    {"thaw": "re:BatchNorm|backbone.2$", "step": 3},
    {"thaw": "all", "epoch": 1},
]
METHODS: dict[str, Any] = {
    "phases": lambda: [FreezingSchedule(phases=PHASES, table=False)],
    "lp_ft": lambda: [FreezingSchedule(recipe="lp_ft", recipe_options={"fraction": 0.7}, table=False)],
    "plateau": lambda: [
        FreezingSchedule(
            phases=[{"thaw": "head"}, {"thaw": "all", "plateau": {"monitor": "train_loss", "patience": 1}}], table=False
        )
    ],
    "phases+ewc": lambda: [FreezingSchedule(phases=PHASES, table=False), EWC(5.0)],
    "phases+l2sp+er": lambda: [FreezingSchedule(phases=PHASES, table=False), L2SP(0.1), Replay(12)],
}


def run(method: str, folder: Path, kill_at: tuple[str, int] | None = None, every: int = 1) -> Any:
    """Two tasks of two epochs of four steps."""
    try:
        return run_sequence(
            module(), stream(), [*METHODS[method](), Recorder(kill_at)], run_dir=folder, trainer=trainer(max_epochs=3),
            batch_size=6, progress_bar=False, checkpoint_every_n_steps=every,
        )  # fmt: skip
    except Killed:
        return None


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed(method: str, tmp_path: Path):
    run(method, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    # step 3 and epoch 1, which starts at step 4, are thaws
    for kill_at in (("batch start", 2), ("batch start", 3), ("batch end", 4), ("epoch start", 4), ("batch end", 6)):
        folder = tmp_path / f"{kill_at[0]} {kill_at[1]}"
        assert run(method, folder, kill_at) is None
        assert run(method, folder)["status"] == "finished"
        assert differences(contents(folder), expected) == [], kill_at


def test_what_a_schedule_leaves_frozen_has_no_importance(tmp_path: Path):
    ewc = EWC(5.0)
    phases = [{"thaw": "head"}, {"thaw": "re:backbone.2$", "step": 3}]
    learner = module()
    before = learner.backbone[1].weight.detach().clone()
    run_sequence(
        learner, stream(), [FreezingSchedule(phases=phases, table=False), ewc], run_dir=tmp_path,
        trainer=trainer(), batch_size=6, progress_bar=False,
    )  # fmt: skip
    assert sorted(ewc.importance) == ["backbone.2.bias", "backbone.2.weight", "head.bias", "head.weight"]
    assert torch.equal(learner.backbone[1].weight, before)
