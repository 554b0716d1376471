"""LUCIR, PODNet, EEIL and balanced fine-tuning, killed in the fit or in the second stage, end as the uninterrupted."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.sequence import run_sequence
from tests.callbacks.teacher_examples import COSINE, METHODS, STAGED
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer

ALL = {**METHODS, **{f"{name}, staged": make for name, make in STAGED.items()}}


def run(method: str, folder: Path, kill_at: tuple[str, int] | None = None) -> Any:
    try:
        return run_sequence(
            module(**COSINE), stream(), [*ALL[method](), Recorder(kill_at)], run_dir=folder, trainer=trainer(),
            batch_size=6, progress_bar=False, checkpoint_every_n_steps=3,
        )  # fmt: skip
    except Killed:
        return None


@pytest.mark.parametrize("method", ALL)
def test_a_killed_run_ends_as_the_uninterrupted_one(method: str, tmp_path: Path):
    run(method, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    # a fit has 8 steps; the second stage of the second task has 20
    kills = [("batch end", 13), ("train end", 20)] if "staged" in method else [("batch end", 5), ("train end", 8)]
    for kill_at in kills:
        folder = tmp_path / kill_at[0]
        assert run(method, folder, kill_at) is None
        checkpoints = [path.name for path in (folder / "checkpoints").glob("fit-*.ckpt")]
        assert checkpoints == (["fit-task0001-stage1.ckpt"] if "staged" in method else ["fit-task0000-stage0.ckpt"])
        assert run(method, folder)["status"] == "finished"
        assert differences(contents(folder), expected) == []


@pytest.mark.parametrize("method", METHODS)
def test_the_second_task_killed_and_the_state_as_a_file(method: str, tmp_path: Path):
    whole = run(method, tmp_path / "whole")
    assert whole["status"] == "finished"

    class Second(Recorder):
        """Counts fits, and kills in the second one."""

        fits, state_key = 0, "Recorder"  # in place of the one that goes on

        def on_train_start(self, *args: Any) -> None:
            self.fits += 1
            self.kill_at = ("batch end", 5) if self.fits == 2 else None

    callbacks = [*METHODS[method](), Second()]
    with pytest.raises(Killed):
        run_sequence(module(**COSINE), stream(), callbacks, run_dir=tmp_path / "killed", trainer=trainer(),
                     batch_size=6, progress_bar=False, checkpoint_every_n_steps=3)  # fmt: skip
    middle = torch.load(tmp_path / "killed" / "checkpoints" / "fit-task0001-stage0.ckpt", weights_only=True)
    state = middle["callbacks"][callbacks[0].state_key]
    assert (state["version"], state["n_tasks"]) == (1, 1)
    assert state["teacher"]["head.weight"].shape[0] == 2
    run(method, tmp_path / "killed")
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []
