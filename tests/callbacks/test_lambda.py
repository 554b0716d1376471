"""Lambda: schedules over tasks and steps, and the guess from the data."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import EWC, SI
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import quadratic_penalty
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.replay_examples import fit


class Strengths(Callback):
    def __init__(self, of: Any) -> None:
        self.of, self.seen = of, []

    def on_before_optimizer_step(self, *args: Any) -> None:
        self.seen.append(self.of.strength)


def test_factors_are_one_per_task_with_a_penalty_and_the_last_repeats():
    module, ewc, before, after = Net(), EWC(10.0, lambda_schedule=[0.5, 2]), Gradients(), Gradients()
    seen = []
    for task in range(4):
        strengths = Strengths(ewc)
        importance, anchor = dict(ewc.importance), dict(ewc.anchor)
        fit(module, data(task), before, ewc, after, strengths, max_epochs=1)
        seen.append(set(strengths.seen))
        if task:
            at = {n: p.requires_grad_() for n, p in zip(importance, after.at[-1], strict=True)}
            penalty = quadratic_penalty(at, importance, anchor, [5.0, 20.0, 20.0][task - 1])
            for own, both, wanted in zip(
                before.seen[-1], after.seen[-1], torch.autograd.grad(penalty, list(at.values())), strict=True
            ):
                torch.testing.assert_close(both - own, wanted, rtol=1e-3, atol=1e-6)
    assert seen[1:] == [{5.0}, {20.0}, {20.0}]


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_a_function_gets_the_task_and_the_step(apply: Any):
    calls = []

    def factor(task: int, step: int) -> float:
        calls.append((task, step))
        return step / 10

    module, ewc = Net(), EWC(10.0, lambda_schedule=factor, apply=apply)
    for task in range(3):
        strengths = Strengths(ewc)
        fit(module, data(task), ewc, strengths, max_epochs=1)
        assert strengths.seen == [0.0, 1.0, 2.0, 3.0]
    assert {(2, step) for step in range(4)} <= set(calls)
    assert max(calls) == (2, 3)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ([], r"lambda_schedule=\[\]; expected finite factors >= 0, one per task"),
        ([1, -1], r"lambda_schedule=\[1, -1\]; expected finite factors"),
        ("1,2", "lambda_schedule='1,2'; expected finite factors"),
        (3.0, r"lambda_schedule=3.0; expected finite factors .* HINT: leave it out"),
    ],
)
def test_other_schedules_are_refused(schedule: Any, message: str):
    with pytest.raises(InputError, match=message):
        EWC(1.0, lambda_schedule=schedule)


def test_a_function_that_gives_no_number_is_refused_when_it_does():
    module, ewc = Net(), EWC(1.0, lambda_schedule=lambda task, step: float("nan"), consolidate="manual")
    ewc.consolidate(None, module, data(0))
    with pytest.raises(InputError, match=r"lambda_schedule\(task=1, step=0\) -> nan; expected a finite number >= 0"):
        fit(module, data(1), ewc)


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
@pytest.mark.parametrize("kind", [EWC, SI])
def test_auto_is_guessed_once_and_stated(kind: Any, apply: Any, caplog: pytest.LogCaptureFixture):
    module, callback = Net(optimizer="Adam"), kind("auto", apply=apply)
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        fit(module, data(0), callback, max_epochs=1)
        assert callback.strength == 0
        assert "lambda" not in callback.state_dict()
        curvature = sum(
            float((callback.importance[name].double() * callback.anchor[name].double() ** 2).sum())
            for name in callback.importance
        )
        after_one = module.weights.clone()
        fit(module, data(1), callback, max_epochs=1)
    assert callback.strength == pytest.approx(5 / curvature)
    fit(module, data(2), callback, max_epochs=1)
    assert callback.strength == callback.state_dict()["lambda"] == pytest.approx(5 / curvature)
    (said,) = [r.getMessage() for r in caplog.records if "lambda_='auto'" in r.getMessage()]
    assert f"is {5 / curvature:.3g}: sum(importance * anchor^2) is {curvature:.3g} over 4 parameters, at task 1" in said
    # it is used, at the strength that is said
    told, naive = (Net(optimizer="Adam") for _ in range(2))
    given = kind(callback.strength, apply=apply)
    for one, callbacks in ((told, [given]), (naive, [])):
        for task in range(3):
            fit(one, data(task), *callbacks, max_epochs=1)
    torch.testing.assert_close(module.weights, told.weights)
    assert not torch.equal(told.weights, naive.weights)
    assert not torch.equal(module.weights, after_one)


def test_auto_is_not_guessed_anew_in_the_next_process(tmp_path: Path):
    module = Net(optimizer="Adam")
    first = EWC("auto", state_path=tmp_path / "state.pt")
    for task in range(2):
        fit(module, data(task), first, max_epochs=1)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["lambda"] == first.strength > 0
    again = EWC("auto", state_path=tmp_path / "state.pt")
    fit(module, data(2), again, max_epochs=1)
    assert again.strength == first.strength
    told = EWC(7.0, state_path=tmp_path / "state.pt")
    fit(module, data(3), told, max_epochs=1)
    assert told.strength == 7.0, "a number that is given counts"


def test_auto_stays_where_sgd_is_stable(caplog: pytest.LogCaptureFixture):
    module, ewc = Net(lr=0.5), EWC("auto", consolidate="manual", normalize="max")
    ewc.consolidate(None, module, data(0))
    # one weight that matters, and hardly differs from 0, makes a large lambda
    for name in ewc.importance:
        ewc.importance[name] = (ewc.importance[name] == 1).float()
        ewc.anchor[name] = ewc.anchor[name] * 0.01
    before, after = Gradients(), Gradients()
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        fit(module, data(1), before, ewc, after, max_epochs=1)
    assert ewc.strength * 0.5 > 2
    assert any("is lowered from" in r.getMessage() and "to 2, half" in r.getMessage() for r in caplog.records)
    added = torch.cat([(b - a).flatten() for a, b in zip(before.seen[0], after.seen[0], strict=True)])
    moved = torch.cat([p.flatten() for p in after.at[0]]) - torch.cat([a.flatten() for a in ewc.anchor.values()])
    where = torch.cat([f.flatten() for f in ewc.importance.values()]) > 0
    torch.testing.assert_close(added[where], 2.0 * moved[where], rtol=1e-3, atol=1e-5)


def test_auto_without_a_size_of_the_weights_is_refused():
    module, ewc = Net(), EWC("auto", consolidate="manual")
    ewc.consolidate(None, module, data(0))
    ewc.anchor = {name: torch.zeros_like(value) for name, value in ewc.anchor.items()}
    with pytest.raises(InputError, match=r"lambda_='auto' where no important parameter .* HINT: give a number"):
        fit(module, data(1), ewc)
