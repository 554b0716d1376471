"""What holds for every method that is a quadratic penalty."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl import Replay
from lightning_cl.functional.penalty import quadratic_penalty
from lightning_cl.importance_files import save_importance
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.penalty_examples import METHODS
from tests.callbacks.replay_examples import fit


def learned(*callbacks: Any, optimizer: str = "Adam", **options: Any) -> Tensor:
    module = Net(optimizer=optimizer)
    torch.manual_seed(5)
    for task in range(2):
        fit(module, data(task, shuffle=True), *callbacks, **options)
    return module.weights


naive = cache(learned)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("apply", "optimizer"), [("gradient", "SGD"), ("gradient", "Adam"), ("proximal", "Adam")])
def test_lambda_zero_is_bit_identical_to_no_callback_and_lambda_is_not(method: str, apply: Any, optimizer: str):
    without = naive(optimizer=optimizer)
    assert torch.equal(without, learned(METHODS[method](0.0, apply=apply), optimizer=optimizer))
    # on the CPU too, where views of the live weights would be an anchor that never pulls
    assert float((without - learned(METHODS[method](apply=apply), optimizer=optimizer)).abs().max()) > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}])
def test_gradient_is_that_of_the_quadratic_by_autograd(method: str, case: dict[str, Any]):
    module, callback = Net(optimizer="Adam"), METHODS[method]()
    fit(module, data(0), callback)
    importance, anchor = ({k: v.clone() for k, v in d.items()} for d in (callback.importance, callback.anchor))
    before, after = Gradients(), Gradients()
    fit(module, data(1), before, callback, after, **case)
    for own, both, at in zip(before.seen, after.seen, after.at, strict=True):
        theta = {name: value.requires_grad_() for name, value in zip(importance, at, strict=True)}
        penalty = quadratic_penalty(theta, importance, anchor, callback.lambda_)
        expected = torch.autograd.grad(penalty, list(theta.values()))
        for a, b, c in zip(own, both, expected, strict=True):
            torch.testing.assert_close(b - a, c, rtol=1e-4, atol=1e-5)
    assert max(float(gradient.abs().max()) for gradient in expected) > 1e-3
    assert {value.dtype for value in [*callback.importance.values(), *callback.anchor.values()]} == {torch.float32}


@pytest.mark.parametrize("method", METHODS)
def test_composes_with_replay(method: str):
    replay, callback = Replay(10), METHODS[method]()
    weights = learned(callback, replay)
    assert callback.n_tasks == replay.n_tasks == 2
    assert not torch.equal(weights, learned(Replay(10)))


@pytest.mark.parametrize("method", METHODS)
def test_parameters_that_are_left_out_are_as_free_as_without_it(method: str):
    callback = METHODS[method](exclude=r"^net\.0\.")
    learned(callback)
    assert set(callback.importance) == {"net.2.weight", "net.2.bias"}


@pytest.mark.parametrize("method", METHODS)
def test_the_anchor_does_not_move_with_the_weights(method: str):
    module, callback = Net(), METHODS[method]()
    fit(module, data(0), callback)
    before = {name: value.clone() for name, value in callback.anchor.items()}
    callback.consolidate_when = "manual"
    fit(module, data(1), callback)
    assert all(torch.equal(value, callback.anchor[name]) for name, value in before.items())
    live = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = [t for store in (callback.importance, callback.anchor) for t in store.values()]
    assert live.isdisjoint(t.untyped_storage().data_ptr() for t in kept)


WITH_AUTO = [method for method in METHODS if method != "l2sp"]


@pytest.mark.parametrize("method", WITH_AUTO)
def test_lambda_can_be_guessed(method: str):
    callback = METHODS[method]("auto")
    weights = learned(callback)
    assert 0 < callback.strength < float("inf")
    assert float((naive(optimizer="Adam") - weights).abs().max()) > 1e-4


@pytest.mark.parametrize("method", WITH_AUTO)
def test_the_first_penalty_can_come_from_a_file(method: str, tmp_path: Path):
    module = Net(optimizer="Adam")
    start = module.weights.clone()
    named = {name: p.detach().clone() for name, p in module.named_parameters()}
    save_importance(tmp_path / "importance.pt", {name: torch.ones_like(p) for name, p in named.items()}, named, {})
    callback = METHODS[method](1e3, importance_path=tmp_path / "importance.pt")
    free = Net(optimizer="Adam")
    fit(free, data(0))
    fit(module, data(0), callback)
    assert float((module.weights - start).norm()) < 0.5 * float((free.weights - start).norm())
    assert callback.n_tasks == 2
