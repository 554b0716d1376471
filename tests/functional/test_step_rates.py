"""Rates of optimizers' steps: against their own steps, and by where training comes to rest."""

from typing import Any

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, RAdam, RMSprop

from lightning_cl.functional.penalty import add_quadratic_gradient_
from lightning_cl.functional.proximal import Rate, proximal_step_, step_rates

OPTIMIZERS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "sgd": (SGD, {"lr": 0.01}),
    "sgd momentum": (SGD, {"lr": 0.01, "momentum": 0.9}),
    "sgd dampening": (SGD, {"lr": 0.01, "momentum": 0.8, "dampening": 0.5}),
    "sgd dampening without momentum": (SGD, {"lr": 0.01, "dampening": 0.5}),
    "sgd nesterov": (SGD, {"lr": 0.01, "momentum": 0.9, "nesterov": True}),
    "sgd maximize": (SGD, {"lr": 0.01, "momentum": 0.9, "maximize": True}),
    "adam": (Adam, {"lr": 0.01, "eps": 1e-3}),
    "adam amsgrad": (Adam, {"lr": 0.01, "eps": 1e-3, "amsgrad": True}),
    "adam foreach": (Adam, {"lr": 0.01, "eps": 1e-3, "foreach": True}),
    "adam fused": (Adam, {"lr": 0.01, "eps": 1e-3, "fused": True}),
    "adamw": (AdamW, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.0}),
    "nadam": (NAdam, {"lr": 0.01, "eps": 1e-3}),
    "radam": (RAdam, {"lr": 0.01, "eps": 1e-3}),
    "rmsprop": (RMSprop, {"lr": 0.01, "eps": 1e-3}),
    "rmsprop momentum": (RMSprop, {"lr": 0.01, "eps": 1e-3, "momentum": 0.9}),
    "rmsprop centered": (RMSprop, {"lr": 0.01, "eps": 1e-3, "centered": True}),
    "adagrad": (Adagrad, {"lr": 0.1, "eps": 1e-3}),
    "adagrad decay": (Adagrad, {"lr": 0.1, "eps": 1e-3, "lr_decay": 1e-3}),
}


def rates_of(optimizer: Any) -> list[torch.Tensor]:
    group = optimizer.param_groups[0]
    rates = step_rates(optimizer, group, group["params"])
    parameters = group["params"]
    return [r.dense() if isinstance(r, Rate) else torch.full_like(p, r) for r, p in zip(rates, parameters, strict=True)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rate_is_what_a_constant_gradient_is_multiplied_with(name: str):
    kind, options = OPTIMIZERS[name]
    x = torch.zeros(3, dtype=torch.float64)
    optimizer, gradient = kind([x], **options), torch.tensor([0.5, -2.0, 1e-3], dtype=torch.float64)
    for _ in range(1500):
        before = x.clone()
        x.grad = gradient.clone()
        optimizer.step()
    sign = 1 if options.get("maximize") else -1
    torch.testing.assert_close(x - before, sign * rates_of(optimizer)[0] * gradient, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["adam", "adam amsgrad", "adamw", "radam", "nadam"])
def test_bias_corrections_are_those_of_the_step_just_made(name: str):
    kind, options = OPTIMIZERS[name]
    x = torch.zeros(1, dtype=torch.float64)
    # without the first moment's memory, every step is exactly the rate times the gradient
    optimizer = kind([x], **{**options, "betas": (0.0, 0.999)})
    for step in range(8):
        before, gradient = x.clone(), torch.tensor([0.5 + step], dtype=torch.float64)
        x.grad = gradient.clone()
        optimizer.step()
        torch.testing.assert_close(before - x, rates_of(optimizer)[0] * gradient)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_comes_to_rest_where_the_gradient_form_does(name: str, decay: float):
    """``h/2 (x - c)^2 + lambda/2 F (x - a)^2`` with h = 1, and weight decay as a part of the gradient."""
    kind, options = OPTIMIZERS[name]
    if decay and kind is AdamW:
        pytest.skip("decoupled decay is not a gradient: where it comes to rest depends on the rate")
    f, a, c = torch.tensor([0.0, 1.0, 4.0]).double(), torch.tensor([5.0, 1.0, -1.0]).double(), 2.0
    lambda_ = 3.0
    expected = (c + lambda_ * f * a) / (1 + decay + lambda_ * f)
    for proximal in (False, True):
        x = torch.zeros(3, dtype=torch.float64)
        optimizer = kind([x], **{**options, "weight_decay": decay})
        for step in range(2500):
            # a noiseless adaptive step rests only as its length goes to 0
            optimizer.param_groups[0]["lr"] = 3 * options["lr"] * 0.997 ** max(0, step - 500)
            x.grad = (x - c) if not options.get("maximize") else (c - x)
            if not proximal:
                add_quadratic_gradient_([x], [x.grad], [f], [a], -lambda_ if options.get("maximize") else lambda_)
            optimizer.step()
            if proximal:
                group = optimizer.param_groups[0]
                proximal_step_([x], [f], [a], lambda_, step_rates(optimizer, group, [x]))
        torch.testing.assert_close(x, expected, rtol=3e-3, atol=3e-3)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_lambda_of_1e13_is_the_anchor(name: str):
    kind, options = OPTIMIZERS[name]
    x, anchor = torch.full((2,), 3.0), torch.tensor([1.0, -1.0])
    optimizer = kind([x], **options)
    for _ in range(3):
        x.grad = torch.tensor([1e-6, 10.0])
        optimizer.step()
        proximal_step_([x], [torch.ones(2)], [anchor], 1e13, step_rates(optimizer, optimizer.param_groups[0], [x]))
        assert torch.equal(x, anchor)


def test_no_rate_without_a_step_or_with_a_learning_rate_of_zero():
    x = torch.ones(1)
    optimizer = Adam([x])
    assert step_rates(optimizer, optimizer.param_groups[0], [x]) == [0.0]
    x.grad = torch.ones(1)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert step_rates(optimizer, optimizer.param_groups[0], [x]) == [0.0]


def test_a_subclass_with_the_same_step_is_known_and_one_with_its_own_is_not():
    class Named(Adam):
        pass

    class Own(Adam):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            raise AssertionError

    x = torch.ones(1)
    x.grad = torch.ones(1)
    named = Named([x])
    torch.optim.lr_scheduler.StepLR(named, 1)  # which replaces `step` on the instance
    named.step()
    assert isinstance(step_rates(named, named.param_groups[0], [x])[0], Rate)
    for optimizer in (Own([x]), torch.optim.LBFGS([x]), torch.optim.Adamax([x])):
        message = rf"optimizer '{type(optimizer).__name__}'; expected one whose step is known: SGD, .* HINT: take one"
        with pytest.raises(ValueError, match=message):
            step_rates(optimizer, optimizer.param_groups[0], [x])
