"""``apply="proximal"`` inside real Trainers: the weights after every step, against the formula."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from lightning_cl import EWC
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit

LAMBDA = 30.0


class Weights(Callback):
    """Weights and rates right behind every optimizer step, as of the callbacks listed before this one."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda optimizer, *_: self.keep(pl_module, optimizer))

    def keep(self, module: Any, optimizer: torch.optim.Optimizer) -> None:
        self.seen.append({name: p.detach().clone() for name, p in module.named_parameters()})
        self.rates.append([group["lr"] for group in optimizer.param_groups])


class Any_(Net):
    """Any optimizers, and a schedule."""

    def __init__(self, make: Callable[[Any], Any], **options: Any) -> None:
        super().__init__(**options)
        self.make = make

    def configure_optimizers(self) -> Any:
        return self.make(self)


def sgd(module: Any, **options: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.05, **options)


def with_schedule(module: Any) -> Any:
    optimizer = sgd(module)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def in_groups(module: Any) -> Any:
    first, last = module.net[0].parameters(), module.net[2].parameters()
    return torch.optim.SGD([{"params": first}, {"params": last, "lr": 0.2, "momentum": 0.5}], lr=0.05)


CASES: dict[str, tuple[Callable[[Any], Any], dict[str, Any], float]] = {
    "plain": (sgd, {}, 1.0),
    "momentum": (lambda m: sgd(m, momentum=0.9, weight_decay=0.1), {}, 10.0),
    "nesterov": (lambda m: sgd(m, momentum=0.9, nesterov=True), {}, 10.0),
    "accumulate": (sgd, {"accumulate_grad_batches": 2}, 1.0),
    "clipped": (sgd, {"gradient_clip_val": 0.01}, 1.0),
    "bf16-mixed": (sgd, {"precision": "bf16-mixed"}, 1.0),
    "16-mixed": (sgd, {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))]}, 1.0),
    "manual": (sgd, {}, 1.0),
    "schedule": (with_schedule, {}, 1.0),
}


def protected(make: Callable[[Any], Any], **options: Any) -> tuple[Any, EWC]:
    """A module and EWC that has learned a task with it."""
    manual = options.pop("manual", False)
    module = Any_(make, manual=manual)
    ewc = EWC(
        options.pop("lambda_", LAMBDA), apply="proximal", consolidate="manual",
        logits_fn=lambda module, batch: (module(batch[0]), batch[1]), **options,
    )  # fmt: skip
    ewc.consolidate(None, module, data(0))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1)
    return module, ewc


@pytest.mark.parametrize("case", CASES)
def test_one_step_of_the_formula_behind_every_step_of_the_optimizer(case: str):
    make, options, factor = CASES[case]
    module, ewc = protected(make, manual=case == "manual")
    before, after = Weights(), Weights()
    fit(module, data(1), before, ewc, after, max_epochs=1, **options)
    assert len(before.seen) == len(after.seen) == (2 if case == "accumulate" else 4)
    if case == "schedule":
        assert before.rates == [[0.05], [0.025], [0.05 / 3], [0.0125]], "the rate of the step just made"
    for theta, moved, (rate,) in zip(before.seen, after.seen, before.rates, strict=True):
        for name in theta:
            s = factor * rate * LAMBDA * ewc.importance[name]
            expected = (theta[name] + s * ewc.anchor[name]) / (1 + s)
            torch.testing.assert_close(moved[name], expected)
            assert not torch.equal(theta[name], moved[name])


def test_groups_have_their_own_rates():
    module, ewc = protected(in_groups)
    before, after = Weights(), Weights()
    fit(module, data(1), before, ewc, after, max_epochs=1)
    for theta, moved in zip(before.seen, after.seen, strict=True):
        for name in theta:
            s = (0.4 if name.startswith("net.2") else 0.05) * LAMBDA * ewc.importance[name]
            torch.testing.assert_close(moved[name], (theta[name] + s * ewc.anchor[name]) / (1 + s))


class TwoOptimizers(Net):
    """Each steps its own layer, the second one every other batch."""

    def __init__(self) -> None:
        super().__init__(manual=True)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss = torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers()[: 1 + batch_idx % 2]:
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return sgd(self.net[0]), sgd(self.net[2])


def test_several_optimizers_each_move_their_own():
    module = TwoOptimizers()
    ewc = protected(sgd)[1]
    before, after = Weights(), Weights()
    fit(module, data(1), before, ewc, after, max_epochs=1)
    assert len(before.seen) == 6
    for step, (theta, moved) in enumerate(zip(before.seen, after.seen, strict=True)):
        second = step in (2, 5)
        for name in theta:
            s = 0.05 * LAMBDA * ewc.importance[name] * (name.startswith("net.2") == second)
            torch.testing.assert_close(moved[name], (theta[name] + s * ewc.anchor[name]) / (1 + s))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "AdamW"])
def test_training_is_that_of_a_plain_loop(optimizer: str):
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8),
        "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1, amsgrad=True),
    }[optimizer]
    module, ewc = protected(lambda module: make(module.parameters()))
    loop = Net()
    loop.load_state_dict(module.state_dict())
    own, importance, anchor = make(loop.parameters()), dict(ewc.importance), dict(ewc.anchor)
    for step, (x, y) in enumerate([*data(1), *data(1)], 1):
        own.zero_grad()
        torch.nn.functional.cross_entropy(loop(x), y).backward()
        own.step()
        with torch.no_grad():
            for name, parameter in loop.named_parameters():
                if optimizer == "SGD":
                    rate = 0.05 / (1 - 0.8)
                else:
                    moment = own.state[parameter]["max_exp_avg_sq" if optimizer == "AdamW" else "exp_avg_sq"]
                    rate = 0.02 / ((moment / (1 - 0.999**step)).sqrt() + 1e-8)
                s = rate * LAMBDA * importance[name]
                parameter.copy_((parameter + s * anchor[name]) / (1 + s))
    fit(module, data(1), ewc, max_epochs=2)
    torch.testing.assert_close(module.weights, loop.weights)


class Overflowing(Any_):
    """The second batch's gradient is infinite."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * (float("inf") if batch_idx == 1 else 1.0)


def test_a_step_that_the_scaler_skips_moves_nothing():
    _, ewc = protected(sgd)
    module, after = Overflowing(sgd), Weights()
    seen: list[Tensor] = []

    class Every(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            seen.append(pl_module.weights)

    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    fit(module, data(1), ewc, after, Every(), max_epochs=1, plugins=[plugin])
    assert len(after.seen) == 3
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_frozen_parameters_stay_until_they_thaw():
    module, ewc = protected(sgd)

    class Thaw(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            pl_module.net[0].requires_grad_(batch_idx >= 2)

    before, after = Weights(), Weights()
    fit(module, data(1), Thaw(), before, ewc, after, max_epochs=1)
    for step, (theta, moved) in enumerate(zip(before.seen, after.seen, strict=True)):
        s = 0.05 * LAMBDA * ewc.importance["net.0.weight"]
        thawed = (theta["net.0.weight"] + s * ewc.anchor["net.0.weight"]) / (1 + s)
        expected = thawed if step >= 2 else after.seen[0]["net.0.weight"]
        torch.testing.assert_close(moved["net.0.weight"], expected)


def test_rows_that_a_head_has_gained_are_free():
    module, ewc = protected(sgd, lambda_=1e13)
    head = torch.nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3] = module.net[2].weight
    module.net[2] = head
    before, after = Weights(), Weights()
    fit(module, data(1), before, ewc, after, max_epochs=1)
    for theta, moved in zip(before.seen, after.seen, strict=True):
        assert torch.equal(moved["net.2.weight"][3:], theta["net.2.weight"][3:])
        torch.testing.assert_close(moved["net.2.weight"][:3], ewc.anchor["net.2.weight"][:3])


def learned(optimizer: str, *callbacks: Any) -> Tensor:
    module = Net(optimizer=optimizer)
    torch.manual_seed(5)
    for task in range(2):
        fit(module, data(task, shuffle=True), *callbacks)
    return module.weights


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_lambda_zero_is_no_callback_bit_for_bit_and_every_other_lambda_is_finite(optimizer: str):
    naive = learned(optimizer)
    assert torch.equal(naive, learned(optimizer, EWC(0.0, apply="proximal")))
    previous = torch.zeros(())
    for lambda_ in (1e1, 1e5, 1e9, 1e13, 1e30):
        weights = learned(optimizer, EWC(lambda_, apply="proximal"))
        assert bool(weights.isfinite().all())
        assert not torch.equal(weights, naive)
        assert not torch.equal(weights, previous) or lambda_ > 1e13
        previous = weights


def test_a_huge_lambda_holds_what_matters():
    module, ewc = Net(), EWC(1e13, apply="proximal", consolidate="manual")
    fit(module, data(0), ewc)
    ewc.consolidate(None, module, data(0))
    fit(module, data(1), ewc)
    for name, parameter in module.named_parameters():
        assert bool(((parameter - ewc.anchor[name]).abs()[ewc.importance[name] > 1e-6] == 0).all())


class Raw(Net):
    """Steps the optimizer itself, past Lightning."""

    def __init__(self) -> None:
        super().__init__(manual=True)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self(batch[0]), batch[1]).backward()
        optimizer.step()


def test_a_step_that_lightning_does_not_see_is_followed_too_and_refused_in_the_gradient_form():
    _, ewc = protected(sgd)
    before, after = Weights(), Weights()
    fit(Raw(), data(1), before, ewc, after, max_epochs=1)
    assert len(after.seen) == 4
    assert not torch.equal(before.seen[1]["net.0.weight"], after.seen[1]["net.0.weight"])
    ewc.apply = "gradient"
    expected = r"a step of SGD that Lightning does not see.*expected optimizers from self.optimizers\(\).*'proximal'"
    with pytest.raises(InputError, match=expected):
        fit(Raw(), data(1), ewc, max_epochs=1)


@pytest.mark.parametrize("name", ["LBFGS", "Adamax"])
def test_optimizers_with_an_unknown_step_are_refused_at_the_start(name: str):
    module, ewc = protected(lambda module: getattr(torch.optim, name)(module.parameters()))
    with pytest.raises(
        InputError, match=rf"optimizer '{name}' with apply='proximal'; expected .* SGD, .* HINT: .*'grad"
    ):
        fit(module, data(1), ewc, max_epochs=1)


@pytest.mark.parametrize("apply", ["gradient", "proximal"])
def test_nothing_listens_any_more_after_a_fit_or_an_exception(apply: Any):
    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise KeyError("stop")

    made: list[torch.optim.Optimizer] = []

    def make(module: Any) -> torch.optim.Optimizer:
        made.append(sgd(module))
        return made[-1]

    module, ewc = protected(make)
    ewc.apply = apply
    fit(module, data(1), ewc, max_epochs=1)
    with pytest.raises(KeyError):
        fit(module, data(1), ewc, Fails(), max_epochs=1)
    assert len(made) == 2
    for optimizer in made:
        assert not optimizer._optimizer_step_post_hooks
