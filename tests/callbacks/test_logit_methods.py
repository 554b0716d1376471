"""Replay, DER, DER++, ER-ACE and LwF in anybody's project, against a plain loop with the same draws."""

from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from lightning_cl.errors import InputError
from tests.callbacks.logit_examples import METHODS, PROJECTS, Plain, Tuples, loader, weights
from tests.callbacks.replay_examples import fit

#: Trainer's options, those of the plain loop, the agreement that is expected
SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], float]] = {
    "accumulate": ({"accumulate_grad_batches": 4}, {"accumulate": 4}, 1e-7),
    "clipped": ({"gradient_clip_val": 0.05}, {"clip": 0.05}, 1e-7),
    "bf16-mixed": ({"precision": "bf16-mixed"}, {"half": torch.bfloat16}, 1e-5),
    "16-mixed": (
        {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]},
        {"half": torch.float16},
        1e-4,
    ),
}


def learn(module: Any, method: str, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    callbacks = [METHODS[method]()] if method in METHODS else []
    for task in range(2):
        data = getattr(module, "_orig_mod", module).data(task, dtype)
        fit(module, loader(data), *callbacks, max_epochs=1, **options)
    return module


@pytest.mark.parametrize("project", PROJECTS)
@pytest.mark.parametrize("method", METHODS)
def test_two_tasks_end_with_the_weights_of_a_plain_loop(method: str, project: str):
    expected = Plain(method, PROJECTS[project]().double()).learn(torch.float64)
    module = learn(PROJECTS[project]().double(), method)
    # stored logits are fp32
    torch.testing.assert_close(weights(module), expected, rtol=0, atol=1e-7 if "der" in method else 1e-12)
    assert float((weights(learn(PROJECTS[project]().double(), "naive")) - expected).abs().max()) > 1e-3
    assert not {"training_step", "on_after_batch_transfer"} & module.__dict__.keys()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_clipped_and_in_half_precision(method: str, setting: str):
    options, by_hand, tolerance = SETTINGS[setting]
    dtype = torch.float32 if "half" in by_hand else torch.float64
    expected = Plain(method, Tuples().to(dtype)).learn(dtype, **by_hand)
    module = learn(Tuples().to(dtype), method, dtype, **options)
    torch.testing.assert_close(weights(module), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("method", "compiled"),
    [
        *((method, "module") for method in METHODS if method not in ("replay-mixed", "derpp")),
        *(("replay-mixed", "part"), ("der", "forward"), ("lwf", "forward"), ("lwf", "part")),
    ],
)
def test_compiled(method: str, compiled: str):
    expected = Plain(method, Tuples().double()).learn(torch.float64)
    module: Any = Tuples().double()
    if compiled == "module":
        module = torch.compile(module, backend="eager")
    elif compiled == "forward":
        module.forward = torch.compile(module.forward, backend="aot_eager")
    else:
        module.net = torch.compile(module.net, backend="aot_eager")
    torch.testing.assert_close(weights(learn(module, method)), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "replay-mixed"])
def test_manual_optimization_is_refused_by_name(method: str):
    module = Tuples()
    module.automatic_optimization = False
    with pytest.raises(InputError, match=r" on Tuples with automatic_optimization=False; expected .*HINT: return the"):
        learn(module, method, torch.float32)


@pytest.mark.parametrize("method", ["der", "er_ace", "lwf"])
def test_a_loss_that_shows_no_logits_is_refused_on_the_first_step(method: str):
    class Squared(Tuples):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return (self(batch[0]) - nn.functional.one_hot(batch[1], 4)).square().mean()

    message = (
        r"a training_step of Squared that showed no logits to \w+; expected a call of cross_entropy.*HINT: give log"
    )
    with pytest.raises(InputError, match=message):
        learn(Squared(), method, torch.float32)
