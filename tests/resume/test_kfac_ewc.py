"""Kronecker-factored EWC, killed in the middle of a task or between two, ends as the uninterrupted run, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import KroneckerEWC
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, contents, differences, learn, stream

# tasks learned before, and step of 8: in the middle of the first task, between two, in the middle of the last. At
# ("train end", 8) of the first task the factors are there, but not yet in a checkpoint.
MOMENTS = [(0, 5), (1, 0), (2, 3)]


class Dies(Callback):
    """As a killed process: nothing is written after the last checkpoint."""

    def __init__(self, method: KroneckerEWC, moment: tuple[int, int] | None) -> None:
        self.method, self.moment = method, moment

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self.moment == (self.method.n_tasks, trainer.global_step):
            raise Killed


def run(folder: Path, accumulate: Any, moment: Any = None) -> Any:
    """Three tasks; the head grows at each."""
    method = KroneckerEWC(5.0, accumulate=accumulate, labels="mc")
    at_end = moment if moment is not None and isinstance(moment[0], str) else None
    callbacks = [method, Dies(method, moment)]
    return learn(folder, callbacks=callbacks, name="naive", stream=stream(n_classes=6), kill_at=at_end)[1]


@pytest.mark.parametrize("accumulate", ["tasks", "sum"])
def test_a_killed_run_ends_as_the_uninterrupted_one(accumulate: str, tmp_path: Path):
    assert run(tmp_path / "whole", accumulate)["status"] == "finished"
    expected = contents(tmp_path / "whole")
    state = expected["learner"]["callbacks"]["KroneckerEWC.kfac_ewc"]
    assert state["n_tasks"] == 3
    assert set(state["blocks"]) == {"backbone.1.weight", "head.weight"}
    assert set(state["importance"]) == {"backbone.2.weight", "backbone.2.bias"}
    assert len(state["blocks"]["head.weight"]["A"]) == (3 if accumulate == "tasks" else 1)
    for moment in [*MOMENTS, ("train end", 8)]:
        folder = tmp_path / str(moment)
        assert run(folder, accumulate, moment) is None
        assert run(folder, accumulate)["status"] == "finished"
        assert differences(contents(folder), expected) == []


def test_the_next_task_can_be_another_process(tmp_path: Path):
    method, module = KroneckerEWC(20.0), Net()
    again = KroneckerEWC(20.0, state_path=tmp_path / "state.pt")
    fit(module, data(0), method)
    other = Net()
    fit(other, data(0), again)
    new = KroneckerEWC(20.0, state_path=tmp_path / "state.pt")
    for task in (1, 2):
        fit(module, data(task), method)
        fit(other, data(task), new)
    assert torch.equal(module.weights, other.weights)
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert differences(saved, method.state_dict()) == []
    assert [len(block["G"]) for block in saved["blocks"].values()] == [3, 3]
