"""GEM inside real Trainers, against a plain loop on the batches that it has drawn."""

import sys
from typing import Any

import pytest
import torch

from lightning_cl import AGEM, GEM, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.streams import task_incremental
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.projection_examples import Recording, gem, plain_loop, trained
from tests.callbacks.replay_examples import fit
from tests.finetuning.examples import FEW_EPOCHS, module, stream


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(batch_size: int | None, accumulate: int):
    callback = GEM(12, margin=0.3, batch_size=batch_size)
    net = trained(callback, optimizer="momentum", accumulate_grad_batches=accumulate)
    # one more pass for each earlier task; the whole memory is read once for each optimizer step
    passes = [1] * 8 + [2] * 8 + [3] * 8
    if batch_size is None:
        passes = [n if i % accumulate == 0 else 1 for i, n in enumerate(passes)]
    assert [len(calls) for calls in net.passed] == passes
    expected = plain_loop(
        net.passed, gem(0.3), optimizer="momentum", accumulate=accumulate, steps_per_task=8 // accumulate
    )
    torch.testing.assert_close(net.weights, expected, rtol=0, atol=1e-9)
    assert callback.projected > 0
    naive = trained(None, optimizer="momentum", accumulate_grad_batches=accumulate)
    assert float((net.weights - naive.weights).abs().max()) > 1e-3


def test_every_earlier_task_has_its_own_samples():
    callback = GEM(12)
    net = trained(callback, epochs=1)
    inputs = [{tuple(x.tolist()) for x, _ in data(task, dtype=torch.float64).dataset} for task in range(3)]
    for calls in net.passed[8:]:
        found = [{tuple(row.tolist()) for row in x} for x, _ in calls[1:]]
        assert [len(part) for part in found] == [6, 6]
        assert all(part <= of_task for part, of_task in zip(found, inputs, strict=False))
    assert callback.memory.labels.bincount().tolist() == [4, 4, 4]


def test_the_first_task_is_plain_training():
    assert torch.equal(trained(GEM(12), tasks=1).weights, trained(None, tasks=1).weights)


def test_filled_step_by_step_it_knows_earlier_tasks_only():
    callback = GEM(12, fill="step", max_per_task=4)
    net = trained(callback, tasks=3)
    assert [len(calls) for calls in net.passed] == [1] * 8 + [2] * 8 + [3] * 8
    assert callback.memory.labels.bincount().tolist() == [4, 4, 4]
    expected = plain_loop(net.passed, gem(0.5))
    torch.testing.assert_close(net.weights, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [GEM, AGEM])
@pytest.mark.parametrize("head", ["growing", "fixed", "multi", "separate"])
def test_every_head(head: Any, method: Any):
    tasks = stream(task_incremental) if head in ("multi", "separate") else stream()
    names = {"class_names": tasks.class_names} if head == "fixed" else {}
    models = [module(head=head, **names) for _ in range(2)]
    callback = method(12)
    for model, callbacks in zip(models, ([callback], []), strict=True):
        run_sequence(model, tasks, callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert weights[0].shape == weights[1].shape
    assert bool(weights[0].isfinite().all())
    assert callback.projected > 0
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("method", [GEM, AGEM])
def test_what_is_frozen_stays_and_has_no_part_in_it(method: Any):
    callback, net = method(12), Recording()
    net.net[0].requires_grad_(False)
    before = net.net[0].weight.clone()
    trained(callback, module=net, tasks=2, epochs=4)
    assert torch.equal(net.net[0].weight, before)
    assert net.net[0].weight.grad is None
    assert callback.projected > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_half_precision(precision: Any):
    callback, net = GEM(12), Net()
    trained(callback, module=net, epochs=1, precision=precision)
    assert callback.projected > 0
    assert bool(net.weights.isfinite().all())


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
