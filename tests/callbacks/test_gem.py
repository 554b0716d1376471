"""GEM inside real Trainers, against a plain loop on the batches that it has drawn."""

import sys
from typing import Any

import pytest
import torch

from lightning_cl import GEM
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.projection_examples import gem, plain_loop, trained
from tests.callbacks.replay_examples import fit


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(batch_size: int | None, accumulate: int):
    callback = GEM(12, margin=0.3, batch_size=batch_size)
    module = trained(callback, optimizer="momentum", accumulate_grad_batches=accumulate)
    # one more pass for each earlier task; the whole memory is read once for each optimizer step
    passes = [1] * 8 + [2] * 8 + [3] * 8
    if batch_size is None:
        passes = [n if i % accumulate == 0 else 1 for i, n in enumerate(passes)]
    assert [len(calls) for calls in module.passed] == passes
    expected = plain_loop(
        module.passed, gem(0.3), optimizer="momentum", accumulate=accumulate, steps_per_task=8 // accumulate
    )
    torch.testing.assert_close(module.weights, expected, rtol=0, atol=1e-9)
    assert callback.projected > 0
    naive = trained(None, optimizer="momentum", accumulate_grad_batches=accumulate)
    assert float((module.weights - naive.weights).abs().max()) > 1e-3


def test_every_earlier_task_has_its_own_samples():
    callback = GEM(12)
    module = trained(callback, epochs=1)
    inputs = [{tuple(x.tolist()) for x, _ in data(task, dtype=torch.float64).dataset} for task in range(3)]
    for calls in module.passed[8:]:
        found = [{tuple(row.tolist()) for row in x} for x, _ in calls[1:]]
        assert [len(part) for part in found] == [6, 6]
        assert all(part <= of_task for part, of_task in zip(found, inputs, strict=False))
    assert callback.memory.labels.bincount().tolist() == [4, 4, 4]


def test_the_first_task_is_plain_training():
    assert torch.equal(trained(GEM(12), tasks=1).weights, trained(None, tasks=1).weights)


def test_filled_step_by_step_it_knows_earlier_tasks_only():
    callback = GEM(12, fill="step", max_per_task=4)
    module = trained(callback, tasks=3)
    assert [len(calls) for calls in module.passed] == [1] * 8 + [2] * 8 + [3] * 8
    assert callback.memory.labels.bincount().tolist() == [4, 4, 4]
    expected = plain_loop(module.passed, gem(0.5))
    torch.testing.assert_close(module.weights, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision: Any):
    callback, module = GEM(12), Net()
    trained(callback, module=module, epochs=1, precision=precision)
    assert callback.projected > 0
    assert bool(module.weights.isfinite().all())


@pytest.mark.parametrize("margin", [-0.1, float("inf"), float("nan"), "0.5"])
def test_a_bad_margin(margin: Any):
    with pytest.raises(InputError, match=r"margin=.*; expected a finite number >= 0"):
        GEM(5, margin=margin)


def test_a_missing_solver_is_named_before_training(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "quadprog", None)
    with pytest.raises(InputError, match=r"GEM without the package 'quadprog'.*HINT: pip install lightning_cl\[qp\]"):
        GEM(5)


def test_manual_optimization_is_refused():
    with pytest.raises(InputError, match=r"GEM on Net with automatic_optimization=False"):
        fit(Net(manual=True), data(0), GEM(5))
