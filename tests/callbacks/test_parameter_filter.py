"""Parameters chosen by name."""

from typing import Any

import pytest
import torch

from lightning_cl import EWC
from lightning_cl.callbacks._parameter_filter import ParameterFilter
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.replay_examples import fit

NAMES = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias"]


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, NAMES),
        ({"include": "weight"}, [NAMES[0], NAMES[2]]),
        ({"include": [r"^net\.0\.", "2.bias"]}, [NAMES[0], NAMES[1], NAMES[3]]),
        ({"exclude": r"\.2\."}, NAMES[:2]),
        ({"include": "weight", "exclude": ["^net.2", "bias"]}, [NAMES[0]]),
    ],
)
def test_only_these_have_importances_and_a_penalty(options: dict[str, Any], chosen: list[str]):
    named = dict.fromkeys(NAMES, torch.zeros(()))
    assert list(ParameterFilter(**options)(named)) == chosen
    module, ewc, before, after = Net(), EWC(10.0, **options), Gradients(), Gradients()
    fit(module, data(0), ewc)
    assert list(ewc.importance) == list(ewc.anchor) == chosen
    fit(module, data(1), before, ewc, after, max_epochs=1)
    for name, own, both in zip(NAMES, before.seen[-1], after.seen[-1], strict=True):
        assert torch.equal(own, both) == (name not in chosen)


@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_refused_before_training(kind: str):
    message = rf"{kind}='layer3', which matches no parameter's name; expected .* HINT: they are called net.0.weight"
    with pytest.raises(InputError, match=message):
        fit(Net(), data(0), EWC(1.0, **{kind: ["net", "layer3"]}))


@pytest.mark.parametrize("pattern", ["(", 3])
def test_what_is_no_regular_expression_is_refused(pattern: Any):
    with pytest.raises(InputError, match=r"exclude=.*; expected a regular expression, or a list of them"):
        EWC(1.0, exclude=[pattern])


def test_everything_left_out_is_refused():
    with pytest.raises(InputError, match=r"^exclude=\['net'\], which leave no parameter; expected at least one. HINT"):
        fit(Net(), data(0), EWC(1.0, exclude="net"))
