"""The moving average over sequences of fits: against a loop by hand, and Lightning's own callback."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

from lightning_cl import EMA, EWC, InputError, Replay, WiSEFT, run_sequence
from lightning_cl.callbacks.ema import weights_of
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import contents, differences, learn, module, stream, trainer
from tests.sequence.test_tuning import learnable


class Weights(Callback):
    """What is trained, after every step; and what the module holds in validation."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.seen.append(state_of(pl_module))

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not trainer.sanity_checking:
            self.validated.append(state_of(pl_module))


def state_of(module: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def averaged(start: dict[str, Tensor], steps: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """By hand, in float64; the first update copies."""
    mean = {name: value.double() for name, value in steps[0].items()}
    for step in steps[1:]:
        mean = {name: decay * mean[name] + (1 - decay) * value.double() for name, value in step.items()}
    return mean


def close(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    assert one.keys() == two.keys()
    return all(
        torch.allclose(value.double(), two[name].double(), atol=1e-5)
        for name, value in one.items()
        if value.is_floating_point()
    )


def test_as_by_hand_and_as_lightnings_own():
    ends, plain, seen = [], Net(), Weights()
    fit(plain, data(0), seen)
    for callback in (EMA(0.7), EMAWeightAveraging(decay=0.7)):
        net = Net()
        fit(net, data(0), callback)
        ends.append(state_of(net))
    expected = averaged(state_of(Net()), seen.seen, 0.7)
    assert close(ends[0], expected)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert not torch.equal(net.weights, plain.weights)


def test_decay_zero_is_no_average():
    plain, net = Net(), Net()
    fit(plain, data(0))
    fit(net, data(0), EMA(0.0))
    assert torch.equal(net.weights, plain.weights)


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
def test_accumulation_clipping_and_bf16(options: Any):
    nets = []
    for callback in (EMA(0.7), EMAWeightAveraging(decay=0.7)):
        nets.append(Net())
        fit(nets[-1], data(0), callback, **options)
    assert torch.equal(nets[0].weights, nets[1].weights)


def test_each_fit_begins_anew_from_the_average_before():
    net, ema = Net(), EMA(0.7)
    fit(net, data(0), ema)
    other = Net()
    other.load_state_dict(net.state_dict())
    fit(net, data(1), ema)
    fit(other, data(1), EMA(0.7))
    assert torch.equal(net.weights, other.weights)
    assert ema._average_model is None


def run(callbacks: Any, folder: Any = None, **options: Any) -> Any:
    learner = module()
    options = {"trainer": trainer(max_epochs=2), "batch_size": 6, "progress_bar": False, **options}
    tasks = options.pop("stream", None) or stream()
    return run_sequence(learner, tasks, callbacks, run_dir=folder, **options), learner


def test_a_head_that_grows_and_the_weights_that_others_see():
    seen = Weights()
    results, learner = run([EMA(0.7), EWC(5.0), Replay(12), seen])
    assert learner.head.out_features == 4
    second = [step for step in seen.seen if step["head.weight"].shape[0] == 4]
    assert close(state_of(learner), averaged({}, second, 0.7))
    assert results["status"] == "finished"
    _, first = run([EMA(0.7), ewc := EWC(5.0)], limit_tasks=1)
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in ewc.anchor.items())


def test_lightnings_own_is_refused_for_a_head_that_grows():
    with pytest.raises(
        InputError, match=r"EMAWeightAveraging with a head that grows; expected lightning_cl.EMA.* HINT"
    ):
        run([EMAWeightAveraging()])


def test_best_are_the_averaged_weights_that_were_validated(monkeypatch: pytest.MonkeyPatch):
    seen = Weights()
    _, learner = run([EMA(0.7), seen], stream=learnable(tasks=1), select="best", trainer=trainer(max_epochs=4))
    kept = state_of(learner)
    assert any(all(torch.equal(value, kept[name]) for name, value in state.items()) for state in seen.validated)
    raw = [all(torch.equal(value, kept[name]) for name, value in state.items()) for state in seen.seen]
    assert not any(raw)


def test_evaluation_inside_training_is_of_the_average():
    results, _ = run([EMA(0.9999, update_starting_at_step=0)], evaluate_every_n_steps=1, trainer=trainer(max_epochs=3))
    accuracy = [row["accuracy"][0] for row in results["continual_evaluation"] if row["task"] == 0]
    assert len(set(accuracy)) == 1, "so slow an average does not move"


def test_with_interpolation():
    _, learner = run([EMA(0.7), WiSEFT(1.0)])
    _, plain = run([EMA(0.7)])
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in learner.state_dict().items())


def test_what_hangs_on_a_module_is_not_copied():
    net = Net()
    net.net[0].memory = torch.zeros(5)
    net.net[0].register_forward_hook(lambda *_: None)
    copied = weights_of(net)
    assert copied.net[0].memory is net.net[0].memory
    assert copied.net[0]._forward_hooks is net.net[0]._forward_hooks
    assert copied.net[0].weight is not net.net[0].weight
    assert torch.equal(copied.net[0].weight, net.net[0].weight)
    assert net.net[0].weight.requires_grad


def test_a_slow_average_of_a_short_fit_is_said(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(Net(), data(0), EMA(0.999))
        fit(Net(), data(0), EMA(0.5))
    said = [record.getMessage() for record in caplog.records if "EMA" in record.getMessage()]
    assert said == ["EMA: 99% of the average are the weights after its first update (decay=0.999, "
                    "8 updates); a smaller decay forgets them"]  # fmt: skip


def test_without_an_update_the_trained_weights_stay(caplog: pytest.LogCaptureFixture):
    plain, net = Net(), Net()
    fit(plain, data(0))
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(net, data(0), EMA(0.5, update_starting_at_step=1000))
    assert torch.equal(net.weights, plain.weights)
    assert [r.getMessage() for r in caplog.records if "EMA" in r.getMessage()] == [
        "EMA: no update in 8 steps, the weights are not averaged; begin earlier"
    ]


@pytest.mark.parametrize("options", [{}, {"update_starting_at_step": 1000}], ids=["averaged", "without an update"])
def test_a_finished_training_that_is_resumed_ends_as_it_had(options: Any, tmp_path: Path):
    ends, anchors = [], []
    for resume in (None, tmp_path / "last.ckpt"):
        net, ewc = Net(), EWC(1.0)
        keep = [ModelCheckpoint(tmp_path, save_last=True)] if resume is None else []
        loops = Trainer(max_epochs=2, accelerator="cpu", callbacks=[EMA(0.7, **options), ewc, *keep],
                        logger=False,
                        enable_checkpointing=resume is None, enable_progress_bar=False)  # fmt: skip
        loops.fit(net, data(0), ckpt_path=resume, weights_only=True if resume else None)
        ends.append(state_of(net))
        anchors.append(ewc.anchor)
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert all(torch.equal(value, anchors[1][name]) for name, value in anchors[0].items())


@pytest.mark.parametrize("kill_at", [("batch start", 2), ("batch end", 5), ("epoch start", 4), ("train end", 8)])
def test_a_killed_run_ends_as_the_uninterrupted_one(kill_at: Any, tmp_path: Path):
    options = {"callbacks": [], "name": "ewc+er"}

    def once(folder: Path, kill: Any = None) -> Any:
        return learn(folder, options["name"], callbacks=[EMA(0.7)], kill_at=kill)  # type: ignore[arg-type]

    events, _ = once(tmp_path / "whole")
    assert once(tmp_path / "killed", kill_at)[1] is None
    _, results = once(tmp_path / "killed")
    assert results["status"] == "finished"
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []
    assert events != learn(tmp_path / "without", options["name"])[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"decay=1.0; expected a number from 0 to 1, not 1. HINT: decay=0.999"),
        ({"update_every_n_steps": 0}, r"update_every_n_steps=0; expected an integer >= 1. HINT"),
    ],
)
def test_other_values_are_refused(options: Any, message: str):
    with pytest.raises(InputError, match=message):
        EMA(**options)
