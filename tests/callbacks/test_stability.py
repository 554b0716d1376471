"""Where the explicit gradient cannot be stable: the bound is the real one, and it is said once."""

import logging
from typing import Any

import pytest
import torch

from lightning_cl import EWC
from lightning_cl.callbacks._stability import StabilityGuard
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import add_quadratic_gradient_
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit

KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "dampening": {"momentum": 0.5, "dampening": 0.3},
    "nesterov": {"momentum": 0.8, "nesterov": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_where_sgd_begins_to_diverge(kind: str, caplog: pytest.LogCaptureFixture):
    """On the penalty alone, 2 % below it training comes to rest, and 2 % above it does not."""
    importance, lr = torch.tensor([0.5, 3.0]), 0.1
    momentum = KINDS[kind].get("momentum", 0.0)
    bound = 2 * (1 + momentum) / (1 - KINDS[kind].get("dampening", 0.0))
    if kind == "nesterov":
        bound = 2 * (1 + momentum) / (1 + 2 * momentum)
    for share in (0.98, 1.02):
        x = torch.tensor([1.0, 1.0], dtype=torch.float64)
        optimizer = torch.optim.SGD([x], lr=lr, **KINDS[kind])
        lambda_, guard = share * bound / (lr * 3.0), StabilityGuard("warn")
        guard.start({"x": importance})
        caplog.clear()
        guard.check([optimizer], lambda_)
        for _ in range(3000):
            x.grad = torch.zeros_like(x)
            add_quadratic_gradient_([x], [x.grad], [importance.double()], [torch.zeros(2).double()], lambda_)
            optimizer.step()
        assert (float(x.abs().max()) > 1e3) == (share > 1)
        assert float(x.abs().max()) > 1e3 or float(x.abs().max()) < 1e-3
        assert bool(caplog.records) == (share > 1)


def test_error_instead_of_warning():
    module, ewc = Net(lr=0.1), EWC(1e6, consolidate="manual", unstable="error")
    ewc.consolidate(None, module, data(0))
    with pytest.raises(InputError, match=r"= 0.1 \* 1e\+06 \* .* > 2.*HINT: apply='proximal'"):
        fit(module, data(1), ewc)
    with pytest.raises(InputError, match="unstable='never'; expected 'warn' or 'error'"):
        EWC(1.0, unstable="never")  # type: ignore[arg-type]


class WarmUp(Net):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1e-9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1e8 if step == 2 else 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_a_rate_that_grows_during_a_fit_is_seen_once(caplog: pytest.LogCaptureFixture):
    module, ewc = WarmUp(), EWC(1e6, consolidate="manual")
    ewc.consolidate(None, module, data(0))
    steps: list[int] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            steps.append(ewc._step)

    handler = Handler()
    logging.getLogger("lightning_cl.callbacks._stability").addHandler(handler)
    try:
        fit(module, data(1), ewc, max_epochs=2)
    finally:
        logging.getLogger("lightning_cl.callbacks._stability").removeHandler(handler)
    assert steps == [2]


def test_the_proximal_form_is_not_warned_about(caplog: pytest.LogCaptureFixture):
    module, ewc = Net(lr=0.1), EWC(1e6, consolidate="manual", apply="proximal", unstable="error")
    ewc.consolidate(None, module, data(0))
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(module, data(1), ewc)
    assert not [r for r in caplog.records if "diverges" in r.getMessage()]
    assert bool(module.weights.isfinite().all())
