"""What generative replay refuses, and how it says so."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_cl.errors import InputError
from tests.callbacks.dgr_examples import Net, as_tuple, data, dgr
from tests.callbacks.ewc_examples import Net as Manual
from tests.callbacks.replay_examples import fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": []}, r"hidden=\[\]; expected widths"),
        ({"latent": 0}, "latent=0; expected an integer >= 1"),
        ({"decoder": "poisson"}, "decoder='poisson'; expected one of bernoulli, gaussian"),
        ({"lr": 0}, "lr=0; expected a finite number > 0"),
        ({"lr": "fast"}, "lr='fast'; expected a finite number > 0"),
        ({"optimizer_state": "drop"}, "optimizer_state='drop'; expected 'reset' or 'keep'"),
        ({"generator_steps": 0}, "generator_steps=0; expected an integer >= 1"),
        ({"batch_size": 0}, "batch_size=0; expected an integer >= 1, or None"),
        ({"weights": (1.0,)}, r"weights=\(1.0,\); expected 'tasks' or two finite numbers"),
        ({"labels": "smooth"}, "labels='smooth'; expected 'hard' or 'soft'"),
        ({"temperature": 0}, "temperature=0; expected a finite number > 0"),
        ({"temperature": float("inf")}, "temperature=inf; expected a finite number > 0"),
        ({"consolidate": "never"}, "consolidate='never'; expected 'auto' or 'manual'"),
    ],
)
def test_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        dgr(**options)


def batches(structure: Any) -> Any:
    return data(0, structure)


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        (
            lambda x, y, t: (x * 2 - 1, y),
            r"inputs between -\S+ and \S+ for decoder='bernoulli'; expected inputs in \[0",
        ),
        (lambda x, y, t: (x * float("nan"), y), r"inputs between nan and nan for decoder='bernoulli'"),
        (lambda x, y, t: ((x * 255).byte(), y), "inputs of torch.uint8 and shape .* expected floating inputs"),
        (lambda x, y, t: (x[:, 0, 0], y), r"inputs of torch.float32 and shape \(6,\); expected floating inputs"),
        (lambda x, y, t: {"image": x, "label": y, "weight": x[:, 0, 0]}, "a batch with leaves .*'weight'"),
        (lambda x, y, t: (x, x), r"a batch with leaves \['0', '1'\]; expected inputs, integer labels"),
        (lambda x, y, t: (x, y[:3]), "leaf '1' of length 3 beside leaf '0' of length 6"),
    ],
)
def test_batches(structure: Any, message: str):
    class AnyNet(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net[1].weight.sum()

    net = AnyNet()
    with pytest.raises(InputError, match=message) as error:
        fit(net, data(0, structure), dgr())
    assert "HINT: " in str(error.value)
    assert "training_step" not in vars(net)


def test_a_gaussian_decoder_takes_any_inputs():
    callback = dgr(decoder="gaussian")
    fit(Net(), data(0, lambda x, y, t: (x * 20 - 10, y)), callback)
    assert callback.n_tasks == 1


def test_another_shape_in_the_second_task():
    callback = dgr()
    fit(Net(), data(0), callback)
    with pytest.raises(InputError, match=r"inputs of shape \(4,\) for a generator of \(2, 2\); expected inputs of one"):
        fit(Net(), data(1, lambda x, y, t: (x.flatten(1), y)), callback)


def test_outputs_that_are_no_logits():
    class Features(Net):
        def forward(self, x: Tensor, task: Tensor | None = None) -> Any:
            return {"logits": self.net(x)}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return torch.nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])

    callback, net = dgr(), Features()
    fit(net, data(0), callback)
    with pytest.raises(InputError, match=r"dict of Features for 6 generated inputs; expected logits .* logits_fn"):
        fit(net, data(1), callback)
    callback, net = dgr(logits_fn=lambda module, batch: (module(batch[0])["logits"], batch[1])), Features()
    for task in range(2):
        fit(net, data(task, as_tuple), callback)
    assert callback.replayed == 48


def test_manual_optimization():
    with pytest.raises(InputError, match="DGR on Net with automatic_optimization=False"):
        fit(Manual(manual=True), data(0), dgr())


def test_consolidation_without_training():
    with pytest.raises(InputError, match="nothing was trained; expected a generator that has seen the task"):
        dgr().consolidate(None, Net())
