"""A run with a budget, killed in the middle of a task, ends as the uninterrupted one, bit for bit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import GDumb, Replay, ShrinkAndPerturb, UniformSampling
from tests.resume.helpers import contents, differences, learn, module, trainer, without_times

METHODS: dict[str, Any] = {
    "uniform": (lambda: [UniformSampling()], {}),
    "uniform 8": (lambda: [UniformSampling(8, class_balanced=False)], {}),
    "gdumb": (lambda: [GDumb(10, max_epochs=9)], {"reinitialize": True}),
    "er": (lambda: [Replay(12)], {}),
    "shrink_and_perturb": (lambda: [ShrinkAndPerturb()], {"training_data": "seen"}),
}


def run(method: str, folder: Path, kill_at: Any = None) -> Any:
    callbacks, options = METHODS[method]
    scheduled = module(scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1))
    # of joint's 4 epochs of 40 samples: 20 steps of 6 samples
    options = {**options, "budget": 0.75, "trainer": trainer(max_epochs=4), "module": scheduled}
    return learn(folder, "naive", callbacks=callbacks(), kill_at=kill_at, **options)


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed(method: str, tmp_path: Path):
    events, whole = run(method, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    last = max(step for name, _, step, *_ in events if name == "train end")
    for kill_at in (("batch end", 3), ("batch start", 5), ("train end", last)):
        folder = tmp_path / f"{kill_at[0]} {kill_at[1]}"
        assert run(method, folder, kill_at)[1] is None
        results = run(method, folder)[1]
        assert differences(contents(folder), expected) == []
        assert (
            differences(
                {**without_times(results), "bytes_kept": 0, "config": 0},
                {**without_times(whole), "bytes_kept": 0, "config": 0},
            )
            == []
        )
    assert whole["compute"]["total"] <= 0.75 * whole["compute"]["joint"]


def test_another_budget_is_another_run(tmp_path: Path):
    from lightning_cl.errors import InputError

    run("uniform", tmp_path, ("batch start", 5))
    with pytest.raises(InputError, match=r"config differs.*budget: 0.75 -> 0.5"):
        learn(tmp_path, "naive", callbacks=[UniformSampling()], budget=0.5, trainer=trainer(max_epochs=4))
