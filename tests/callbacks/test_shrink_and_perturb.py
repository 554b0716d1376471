"""The weights at the start of each fit."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_cl import ShrinkAndPerturb, run_sequence
from lightning_cl.callbacks.shrink_and_perturb import fresh_parameters
from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
from tests.finetuning.examples import FEW_EPOCHS, module, stream


class Ends(Callback):
    """Weights at both ends of each fit."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.ends: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.starts.append({name: value.clone() for name, value in pl_module.named_parameters()})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append({name: value.detach().clone() for name, value in pl_module.named_parameters()})


def learn(*callbacks: Any, **options: Any) -> Any:
    model = module()
    defaults: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10}
    run_sequence(model, stream(), callbacks, **{**defaults, **options})
    return model


def test_formula_at_the_start_of_each_fit() -> None:
    watch = Ends()
    model = learn(ShrinkAndPerturb(0.6, 0.2, seed=4), watch)
    plain = Ends()
    learn(plain)
    for name, value in plain.starts[0].items():
        assert torch.equal(value, watch.starts[0][name])
    for t in (1, 2):
        fresh = fresh_parameters(model, derive_seed(4, "shrink_and_perturb", t))
        assert fresh.keys() == watch.starts[t].keys()
        for name, before in watch.ends[t - 1].items():
            n = len(before)  # rows of new classes were not there yet
            expected = 0.6 * before + 0.2 * fresh[name][:n]
            torch.testing.assert_close(watch.starts[t][name][:n], expected)


def test_fresh_values_have_the_scale_of_an_initialisation_and_nothing_is_changed() -> None:
    model = nn.Sequential(nn.Linear(100, 200), nn.BatchNorm1d(200), nn.Linear(200, 10), nn.MultiheadAttention(8, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    one, two, other = (fresh_parameters(model, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert one.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["0.weight"], other["0.weight"])
    assert float(one["0.weight"].std()) == pytest.approx(0.1 / 3**0.5, rel=0.05)
    assert one["1.weight"].eq(1).all()


def test_one_and_zero_are_naive_bit_for_bit_and_others_are_not() -> None:
    plain, same, other = learn(), learn(ShrinkAndPerturb(1.0, 0.0)), learn(ShrinkAndPerturb(1.0, 0.01))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
    assert not torch.equal(plain.backbone.layers[1].weight, other.backbone.layers[1].weight)


def test_in_a_trainer_of_ones_own() -> None:
    callback, net, watch = ShrinkAndPerturb(), Net(), Ends()
    fit(net, data(0), callback, watch)
    fit(net, data(1), callback, watch)
    assert callback.changed == 1
    name, weight = next(iter(watch.starts[1].items()))
    assert not torch.equal(weight, watch.ends[0][name])


def test_frozen_and_raw_parameters_stay(caplog: pytest.LogCaptureFixture) -> None:
    class Backbone(nn.Sequential):
        feature_dim = 4

        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 4), nn.ReLU())
            self.token = nn.Parameter(torch.ones(4))
            self[0].bias.requires_grad_(False)

    watch, model = Ends(), module(backbone=Backbone())
    run_sequence(model, stream(), [ShrinkAndPerturb(), watch], trainer=FEW_EPOCHS, progress_bar=False)
    for name in ("backbone.token", "backbone.0.bias"):
        assert torch.equal(watch.starts[1][name], watch.ends[0][name])
    assert "['backbone.token'] have no initialisation" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 1.1}, "shrink=1.1; expected a number from 0 to 1"),
        ({"shrink": "x"}, "shrink='x'; expected a number from 0 to 1"),
        ({"perturb": -0.1}, "perturb=-0.1; expected a finite number >= 0"),
        ({"perturb": float("nan")}, "perturb=nan; expected a finite number >= 0"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ShrinkAndPerturb(**options)
