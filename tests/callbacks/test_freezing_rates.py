"""A parameter group that is added at the start has the learning rates that it would have had from the beginning."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR

from lightning_cl.callbacks._freezing_optimizer import add_missing_groups
from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.callbacks._freezing_plan import Part
from lightning_cl.errors import InputError
from tests.callbacks.freezing_schedulers import SCHEDULERS

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
    "Adam": lambda groups: Adam(groups, lr=0.1, betas=(0.8, 0.99)),
}
KEYS = ("lr", "momentum", "betas", "initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "swa_lr")


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.ones(2))


def course(optimizer: Optimizer, scheduler: Any, steps: int = 14) -> list[list[dict[str, Any]]]:
    """The settings of each group at each step."""
    seen = []
    for step in range(steps):
        seen.append([{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step(*([float(step)] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        assert len(scheduler.get_last_lr()) == len(optimizer.param_groups)
    return seen


def extended(optimizer: Optimizer, scheduler: Any, lr: float | None = None) -> None:
    add_missing_groups([optimizer], [scheduler], [Part(Phase("backbone", "epoch", 1, lr), {"a": parameter()})])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_same_as_if_it_had_been_there(scheduler: str, optimizer: str):
    make, schedule = OPTIMIZERS[optimizer], SCHEDULERS[scheduler]
    there = make([{"params": [parameter()]}, {"params": [parameter()]}])
    expected = course(there, schedule(there))
    added = make([parameter()])
    its = schedule(added)
    extended(added, its)
    assert course(added, its) == expected
    assert expected[0][0]["lr"] != expected[-1][0]["lr"]
    assert its.state_dict().keys() == schedule(make([parameter()])).state_dict().keys()


def test_named_groups_stay_apart():
    """``LearningRateMonitor`` refuses two groups of one name."""
    optimizer = SGD([{"params": [parameter()], "name": "head"}, {"params": [parameter()], "name": "all"}], lr=0.1)
    parts = [Part(Phase(what, "epoch", 1, None), {"a": parameter()}) for what in ("stem", "all")]
    add_missing_groups([optimizer], [], parts)
    assert [group["name"] for group in optimizer.param_groups] == ["head", "all", "stem", "all (2)"]


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_its_own_rate_follows_the_same_law(scheduler: str):
    """What torch would do with a group of another rate; with two peaks where the peak is the scheduler's."""
    with_peaks: dict[str, Callable[[Optimizer], Any]] = {
        "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, [0.01, 0.002], [0.1, 0.02], step_size_up=3),
        "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.1, 0.02], total_steps=40),
    }
    make = OPTIMIZERS["SGD"]
    there = make([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.02}])
    expected = course(there, with_peaks.get(scheduler, SCHEDULERS[scheduler])(there))
    added = make([parameter()])
    alone = course(make([parameter()]), SCHEDULERS[scheduler](make([parameter()])), 1)
    its = SCHEDULERS[scheduler](added)
    extended(added, its, 0.02)
    found = course(added, its)
    assert [step[0] for step in found] == [step[0] for step in expected]
    assert found[0][0] == alone[0][0] | found[0][0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-12)


def test_lists_per_group_continue_with_the_first_groups_entry():
    optimizer = SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}], lr=0.1)
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=[0.01, 0.02])
    extended(optimizer, scheduler)
    assert scheduler.min_lrs == [0.01, 0.02, 0.01]
    optimizer = SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}], lr=0.1)
    lambdas = [lambda step: 0.5**step, lambda step: 1.0]
    its = lr_scheduler.LambdaLR(optimizer, lambdas)
    extended(optimizer, its)
    its.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5, 0.05]


def test_tensor_rates_stay_tensors_of_their_own():
    optimizer = Adam([parameter()], lr=torch.tensor(0.1))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    extended(optimizer, scheduler, 0.2)
    scheduler.step()
    first, second = (group["lr"] for group in optimizer.param_groups)
    assert isinstance(second, torch.Tensor)
    assert (float(first), float(second)) == pytest.approx((0.05, 0.1))


def test_named_parameters_and_settings_of_the_first_group():
    network = nn.Linear(2, 2)
    optimizer = SGD(network.named_parameters(), lr=0.1, momentum=0.5, weight_decay=0.3, nesterov=True)
    extended(optimizer, lr_scheduler.ConstantLR(optimizer))
    group = optimizer.param_groups[1]
    assert group["param_names"] == ["a"]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 0.3, True)


class PerGroup(lr_scheduler.LRScheduler):
    """Somebody's, with a list of its own."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.targets = [group["lr"] for group in optimizer.param_groups]
        super().__init__(optimizer)

    def get_lr(self) -> list[Any]:
        return [target * 0.5 for target in self.targets]


class Halving(lr_scheduler.LRScheduler):
    """Somebody's, with torch's own base_lrs only."""

    def get_lr(self) -> list[Any]:
        return [base * 0.5**self.last_epoch for base in self.base_lrs]


def stepped(optimizer: Optimizer) -> Any:
    scheduler = lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    return scheduler


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            PerGroup,
            "LR scheduler 'PerGroup', and 1 parameters of backbone that no optimizer holds; expected torch's own",
        ),
        (lambda o: lr_scheduler.SequentialLR(o, [PerGroup(o), Halving(o)], [2]), "LR scheduler 'PerGroup', and"),
        (lambda o: type("Foreign", (), {"optimizer": o})(), "LR scheduler 'Foreign', and"),
        (stepped, "LR scheduler 'StepLR' that has been stepped, and .* HINT: give the optimizer all parameters"),
    ],
)
def test_what_cannot_be_right_is_refused(make: Any, said: str):
    optimizer = SGD([{"params": [parameter()]}, {"params": [parameter()]}], lr=0.1)
    with pytest.raises(InputError, match=said):
        extended(optimizer, make(optimizer))


def test_somebodys_scheduler_with_nothing_of_its_own_is_extended():
    optimizer = SGD([{"params": [parameter()]}, {"params": [parameter()]}], lr=0.1)
    scheduler = Halving(optimizer)
    extended(optimizer, scheduler, 0.2)
    optimizer.step()
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05, 0.1]


def test_optimizers_that_cannot_take_a_group():
    parts = [Part(Phase("backbone"), {"a": parameter()})]
    with pytest.raises(InputError, match="2 optimizers, and 1 parameters of backbone that no optimizer holds"):
        add_missing_groups([SGD([parameter()], 0.1), SGD([parameter()], 0.1)], [], parts)
    with pytest.raises(InputError, match="LBFGS, which takes no second parameter group"):
        add_missing_groups([torch.optim.LBFGS([parameter()])], [], parts)


def test_a_rate_for_what_the_optimizer_holds_is_refused():
    held = parameter()
    optimizer = SGD([held], lr=0.1)
    part = Part(Phase("stage3", "epoch", 1, 0.01), {"a": held, "b": parameter()})
    with pytest.raises(
        InputError, match=r"lr=0\.01 for stage3, of which the optimizer holds 1 of 2 .*parameter_groups"
    ):
        add_missing_groups([optimizer], [], [part])
    assert len(optimizer.param_groups) == 1


def test_parameters_are_told_apart_by_identity():
    held, twin = parameter(), parameter()
    optimizer = SGD([held], lr=0.1)
    add_missing_groups([optimizer], [], [Part(Phase("all"), {"held": held, "twin": twin})])
    assert [[id(p) for p in group["params"]] for group in optimizer.param_groups] == [[id(held)], [id(twin)]]


def test_every_scheduler_of_this_torch_is_here():
    theirs = {name for name in lr_scheduler.__all__ if name != "LRScheduler"} | {SWALR.__name__}
    assert theirs == set(SCHEDULERS)
