"""EWC's arguments, refusals and warnings."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_cl import EWC
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": -1}, "lambda_=-1; expected a finite number >= 0, or 'auto'. HINT: try lambda_=1000"),
        ({"lambda_": float("nan")}, "lambda_=nan; expected a finite number"),
        ({"lambda_": "high"}, "lambda_='high'; expected a finite number"),
        ({"variant": "other"}, "variant='other'; expected 'offline', 'online' or 'average'"),
        ({"gamma": 0.0}, r"gamma=0.0; expected a number in \(0, 1\]"),
        ({"gamma": 1.5}, r"gamma=1.5; expected a number in \(0, 1\]"),
        ({"labels": "true"}, "labels='true'; expected one of exact, mc, empirical, predicted"),
        ({"n_draws": 0}, "n_draws=0, n_samples=None; expected integers >= 1"),
        ({"n_samples": 0}, "n_draws=1, n_samples=0; expected integers >= 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        EWC(**{"lambda_": 1.0, **options})


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_sharded_strategies_other_than_fsdp2_are_refused_in_setup(strategy: str):
    trainer = SimpleNamespace(strategy=type(strategy, (), {})())
    with pytest.raises(InputError, match=f"strategy '{strategy}' with EWC; expected .* HINT: use strategy='ddp', or"):
        EWC(1.0).setup(trainer, Net(), "fit")


@pytest.mark.parametrize("scaler", [None, object()])
def test_fused_optimizer_is_refused_only_with_a_gradient_scaler(scaler: Any):
    optimizer = torch.optim.SGD(Net().parameters(), lr=0.1, fused=True)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), optimizers=[optimizer])
    if scaler is None:
        EWC(1.0).on_fit_start(trainer, Net())
        return
    with pytest.raises(InputError, match=r"a fused optimizer .* expected .* HINT: set fused=False"):
        EWC(1.0).on_fit_start(trainer, Net())


@pytest.mark.parametrize(("lambda_", "warned"), [(1e-3, False), (1e6, True)])
def test_warns_where_sgd_cannot_be_stable(lambda_: float, warned: bool, caplog: pytest.LogCaptureFixture):
    module, ewc = Net(lr=0.1), EWC(lambda_, consolidate="manual")
    ewc.consolidate(None, module, data(0))
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(module, data(1), ewc, max_steps=1)
    text = [r.getMessage() for r in caplog.records if "SGD diverges" in r.getMessage()]
    assert bool(text) == warned
    if warned:
        largest = max(float(f.max()) for f in ewc.importance.values())
        assert f"lower lambda_ to below {2 / (0.1 * largest):.3g}" in text[0]


def test_adam_is_not_warned_about(caplog: pytest.LogCaptureFixture):
    module, ewc = Net(lr=0.1, optimizer="Adam"), EWC(1e6, consolidate="manual")
    ewc.consolidate(None, module, data(0))
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(module, data(1), ewc, max_steps=1)
    assert not [r for r in caplog.records if "SGD diverges" in r.getMessage()]


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_importances_that_are_not_numbers_are_refused(smoothing: float):
    class Smoothed(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return torch.nn.functional.cross_entropy(self(batch[0]), batch[1], label_smoothing=smoothing)

    module, ewc = Smoothed(), EWC(1.0)
    with torch.no_grad():
        module.net[0].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"is not finite; expected finite numbers. HINT: look for NaN"):
        ewc.consolidate(None, module, data(0))
    assert ewc.n_tasks == 0
    assert ewc.importance == {}


@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
@pytest.mark.parametrize("n_samples", [None, 7])
def test_every_kind_of_label_is_passed_on(labels: Any, n_samples: int | None):
    from lightning_cl.functional import diagonal_fisher

    module = Net()
    ewc = EWC(1.0, labels=labels, n_samples=n_samples, n_draws=3, seed=4)
    ewc.consolidate(None, module, data(0))
    oracle = diagonal_fisher(module, data(0), labels=labels, n_samples=n_samples, n_draws=3, seed=4)
    for name, value in oracle.items():
        torch.testing.assert_close(ewc.importance[name], value)
