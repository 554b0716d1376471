"""WiSE-FT, killed anywhere, ends as the uninterrupted run, bit for bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import EWC, WiSEFT
from lightning_cl.callbacks import wise_ft
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, contents, differences, learn, stream, without_times
from tests.resume.test_penalties import Dies


def callbacks(**options: Any) -> list[Any]:
    return [WiSEFT(**{"choose": "val", "alphas": [0, 0.3, 0.6, 1], "batch_norm": "reestimate"} | options), EWC(2.0)]


@pytest.mark.parametrize("anchor", ["previous", "pretrained"])
def test_killed_in_the_second_fit_and_at_its_end(anchor: Any, tmp_path: Path):
    def run(folder: Path, kill_at: Any = None) -> Any:
        own = callbacks(anchor=anchor)
        return learn(folder, "naive", callbacks=own, kill_at=kill_at, stream=stream(validation=0.3))[1]

    whole = run(tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    for kill_at in (("batch start", 1), ("batch end", 5), ("train end", 6)):
        folder = tmp_path / kill_at[0]
        assert run(folder, kill_at) is None
        again = run(folder)
        assert differences(contents(folder), expected) == []
        assert without_times(again)["interpolation"] == whole["interpolation"]
        assert again["accuracy_matrix"] == whole["accuracy_matrix"]


@pytest.mark.parametrize("call", [0, 2, 7])
def test_killed_inside_the_curve(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    learn(tmp_path / "whole", "naive", callbacks=callbacks(), stream=stream(validation=0.3))
    expected = contents(tmp_path / "whole")
    calls = []
    go_to = wise_ft.Line.go_to

    def dies(line: Any, alpha: float) -> None:
        go_to(line, alpha)
        calls.append(alpha)
        if len(calls) == call + 1:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(wise_ft.Line, "go_to", dies)
        assert learn(tmp_path / "killed", "naive", callbacks=callbacks(), stream=stream(validation=0.3))[1] is None
    learn(tmp_path / "killed", "naive", callbacks=callbacks(), stream=stream(validation=0.3))
    assert differences(contents(tmp_path / "killed"), expected) == []


def test_a_fit_of_ones_own_goes_on_with_the_weights_before(tmp_path: Path):
    from lightning.pytorch.callbacks import ModelCheckpoint

    def second(net: Net, wise: Any, *others: Any, **more: Any) -> None:
        keep = ModelCheckpoint(tmp_path, every_n_train_steps=4, save_top_k=-1, save_last=False, filename="{step}")
        fit(net, data(0), wise, *others, keep, max_epochs=3, enable_checkpointing=True, **more)

    whole, wise = Net(), WiSEFT(0.4)
    fit(whole, data(0), wise, max_epochs=3)
    for killed_at in (5, 12):
        with pytest.raises(Killed):
            second(Net(), WiSEFT(0.4), Dies(killed_at)) if killed_at < 12 else second(
                Net(), Dies(killed_at), WiSEFT(0.4)
            )
        net, again = Net(), WiSEFT(0.4)
        with torch.no_grad():
            net.net[0].weight.zero_()  # what the new process starts from does not count
        second(net, again, ckpt_path=tmp_path / f"step={killed_at // 4 * 4}.ckpt")
        assert torch.equal(net.weights, whole.weights)
        assert (again.done, again.n_tasks) == (1, 1)
        for file in tmp_path.glob("*.ckpt"):
            file.unlink()


def test_the_next_task_can_be_another_process(tmp_path: Path):
    def process(net: Net, task: int) -> WiSEFT:
        wise = WiSEFT(0.4, anchor="pretrained", state_path=tmp_path / "state.pt")
        fit(net, data(task), wise)
        return wise

    net, wise = Net(), WiSEFT(0.4, anchor="pretrained")
    for task in range(2):
        fit(net, data(task), wise)
    other = Net()
    process(other, 0)
    assert process(other, 1).n_tasks == 2
    assert torch.equal(net.weights, other.weights)
