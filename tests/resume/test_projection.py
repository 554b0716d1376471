"""A-GEM and GEM, killed in the middle of a task, end as uninterrupted, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import AGEM, EWC, GEM
from tests.callbacks.ewc_examples import data
from tests.callbacks.projection_examples import trained
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, contents, differences, learn

METHODS: dict[str, Callable[[], list[Any]]] = {
    "a_gem": lambda: [AGEM(8, batch_size=4)],
    "a_gem, filled by step": lambda: [AGEM(8, policy="reservoir", fill="step")],
    "gem": lambda: [GEM(8)],
    "gem, subsets": lambda: [GEM(8, batch_size=2)],
    "ewc+a_gem": lambda: [EWC(5.0), AGEM(8)],
}


class Dies(Callback):
    """At the n-th batch of all tasks; a task has eight."""

    def __init__(self, n: int) -> None:
        self.left = n

    def on_train_batch_end(self, *args: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed


@pytest.mark.parametrize("name", METHODS)
def test_a_killed_run_ends_as_the_uninterrupted_one(name: str, tmp_path: Path):
    learn(tmp_path / "whole", "naive", callbacks=[*METHODS[name](), Dies(0)])
    expected = contents(tmp_path / "whole")
    learn(tmp_path / "naive", "naive")
    assert differences(contents(tmp_path / "naive")["model"]["state_dict"], expected["model"]["state_dict"]) != []
    for batch in (11, 16):
        folder = tmp_path / str(batch)
        assert learn(folder, "naive", callbacks=[*METHODS[name](), Dies(batch)])[1] is None
        assert learn(folder, "naive", callbacks=[*METHODS[name](), Dies(0)])[1]["status"] == "finished"
        assert differences(contents(folder), expected) == []


@pytest.mark.parametrize("name", ["a_gem", "gem, subsets"])
def test_the_state_is_plain_and_goes_on_in_another_process(name: str, tmp_path: Path):
    (callback,) = METHODS[name]()
    module = trained(callback, tasks=1)
    torch.save(callback.state_dict(), tmp_path / "state.pt")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    (again,) = METHODS[name]()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    copy = trained(None, tasks=0)
    copy.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    for one, net in ((callback, module), (again, copy)):
        fit(net, data(1, dtype=net.dtype), one)
    assert torch.equal(module.weights, copy.weights)
    assert differences(callback.state_dict(), again.state_dict()) == []
