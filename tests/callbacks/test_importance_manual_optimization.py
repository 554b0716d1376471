"""Importance under manual optimization: each parameter's own optimizer says whose gradient counts."""

from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_cl import EWC
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import data
from tests.callbacks.importance_examples import assert_agree, oracle
from tests.callbacks.replay_examples import fit


class Adversaries(LightningModule):
    """Two networks, two optimizers and a scheduler; the second loss leaves gradients on the first network too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 1)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        made = self.a(x)
        return nn.functional.cross_entropy(made, y), self.b(made).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (first, second), schedule = self.optimizers(), self.lr_schedulers()
        self.toggle_optimizer(first)
        loss, _ = self.losses(*batch)
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=1e-3)
        first.step()
        self.untoggle_optimizer(first)
        schedule.step()
        _, loss = self.losses(*batch)
        second.zero_grad()
        self.manual_backward(loss)
        second.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.a.parameters(), lr=0.01)
        return [first, torch.optim.SGD(self.b.parameters(), lr=0.01)], [torch.optim.lr_scheduler.StepLR(first, 2)]


@pytest.mark.parametrize("with_trainer", [True, False])
def test_each_parameter_gets_the_gradient_that_its_own_optimizer_steps_with(with_trainer: bool):
    module, ewc = Adversaries(), EWC(1.0)
    if with_trainer:
        fit(module, data(0), ewc)
    else:
        ewc.consolidate(None, module, data(0))
    first = oracle(module, data(0), lambda x, y: module.losses(x, y)[0])
    second = oracle(module, data(0), lambda x, y: module.losses(x, y)[1])
    assert_agree(ewc.importance, {name: (first if name.startswith("a") else second)[name] for name in first})
    assert all(p.requires_grad for p in module.parameters())


def test_manual_optimization_is_left_as_it_was():
    results = []
    for callbacks in ([], [EWC(0.0)]):
        module = Adversaries()
        trainer = fit(module, data(0), *callbacks)
        state = trainer.optimizers[0].state_dict()
        results.append((torch.cat([p.flatten() for p in module.parameters()]), state["param_groups"][0]["lr"]))
        results[-1] += (float(state["state"][0]["step"]), "optimizers" in vars(module))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_optimizers_behind_the_stand_ins_are_refused_before_training():
    class Direct(Adversaries):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss, _ = self.losses(*batch)
            self.trainer.optimizers[0].zero_grad()
            loss.backward()
            self.trainer.optimizers[0].step()

    module = Direct()
    before = module.a.weight.detach().clone()
    with pytest.raises(InputError, match=r"Direct.training_step, which changes the weights by itself; expected"):
        fit(module, data(0), EWC(1.0))
    assert torch.equal(module.a.weight, before)
