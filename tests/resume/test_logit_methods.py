"""LwF, DER, DER++ and ER-ACE, killed in the middle of a task, end as the uninterrupted ones, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl import DER, ERACE, LwF
from lightning_cl.sequence import run_sequence
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer
from tests.resume.test_penalties import Dies

METHODS: dict[str, Callable[[], Any]] = {
    "lwf": lambda: LwF(0.7, weights="tasks"),
    "der": lambda: DER(12, 0.3),
    "derpp": lambda: DER(12, 0.3, 0.5, fill="consolidate"),
    "er_ace": lambda: ERACE(12, batch_size=4),
}


def learn(method: str, folder: Path, killed_at: int | None) -> tuple[torch.Tensor, dict[str, Any]]:
    """Two tasks of 12 steps; the second one is killed at a step, and goes on in new objects."""

    def second(callback: Any, net: Net, *others: Any, **more: Any) -> None:
        keep = ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1, save_last=False, filename="{step}")
        fit(net, data(1), *others, callback, keep, max_epochs=3, enable_checkpointing=True, **more)

    callback, net = METHODS[method](), Net(optimizer="Adam")
    fit(net, data(0), callback, max_epochs=3)
    if killed_at is None:
        second(callback, net)
    else:
        with pytest.raises(Killed):
            second(callback, net, Dies(killed_at))
        callback, net = METHODS[method](), Net(optimizer="Adam")
        second(callback, net, ckpt_path=folder / f"step={killed_at // 4 * 4}.ckpt")
    return net.weights, callback.state_dict()


@pytest.mark.parametrize("killed_at", [5, 12])
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_fit_ends_as_the_uninterrupted_one(method: str, killed_at: int, tmp_path: Path):
    weights, state = learn(method, tmp_path / "whole", None)
    weights_again, state_again = learn(method, tmp_path / "killed", killed_at)
    assert torch.equal(weights, weights_again)
    assert differences(state, state_again) == []
    assert state["n_tasks"] == 2
    torch.save(state, tmp_path / "state.pt")
    assert differences(torch.load(tmp_path / "state.pt", weights_only=True), state) == []


def run(method: str, folder: Path, kill_at: tuple[str, int] | None = None) -> Any:
    try:
        return run_sequence(
            module(), stream(), [METHODS[method](), Recorder(kill_at)], run_dir=folder, trainer=trainer(), batch_size=6,
            progress_bar=False, checkpoint_every_n_steps=2,
        )  # fmt: skip
    except Killed:
        return None


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_the_uninterrupted_one(method: str, tmp_path: Path):
    run(method, tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for kill_at in (("batch end", 3), ("train end", 8)):
        folder = tmp_path / kill_at[0]
        assert run(method, folder, kill_at) is None
        assert run(method, folder)["status"] == "finished"
        assert differences(contents(folder), expected) == []
