"""Every method in every condition ends with the weights of a plain loop, or is refused by name with a hint.

The default suite has every method in every condition, and with every kind of batch; ``pytest -m long tests/parity`` has
all pairs of a condition and a kind of batch, and the compiled training step.
"""

from pathlib import Path

import pytest
import torch
import yaml

from lightning_cl.errors import InputError
from tests.parity.conditions import CONDITIONS, STRUCTURES
from tests.parity.methods import FOREIGN, METHODS, REFUSED, SEQUENCE, refusal
from tests.parity.run import naive, run

pytestmark = pytest.mark.slow
CONF = Path(__file__).parents[2] / "conf" / "method"
SHORT = [name for name in CONDITIONS if name != "compile-step"]


def assert_equal_or_refused(method: str, condition: str, structure: str) -> None:
    message = refusal(method, condition, structure)
    if message is not None:
        with pytest.raises(InputError, match=message) as error:
            run(method, condition, structure)
        assert "HINT: " in str(error.value)
        # what a batch looks like is known with the first of them
        before_training = {"setup", "on_fit_start"} & {entry.name for entry in error.traceback}
        assert before_training or structure != "tuple"
        return
    got, expected = run(method, condition, structure)
    torch.testing.assert_close(got, expected, rtol=0, atol=CONDITIONS[condition].tolerance, check_dtype=False)
    if condition == "plain":
        without = naive(method, structure)
        # adapters are parameters of their own
        assert len(without) < len(got) or float((without - got).abs().max()) > 1e-3, "the method does something"


def test_every_yaml_with_a_callback_is_in_the_list():
    with_callback = {
        path.stem for path in CONF.glob("*.yaml") if (yaml.safe_load(path.read_text()) or {}).get("callbacks")
    }
    assert with_callback == {method.partition(",")[0] for method in METHODS}
    for method, condition, structure in REFUSED:
        assert method in METHODS
        assert condition in (None, *CONDITIONS)
        assert structure in (None, *STRUCTURES)


@pytest.mark.parametrize("condition", SHORT)
@pytest.mark.parametrize("method", METHODS)
def test_conditions(method: str, condition: str):
    assert_equal_or_refused(method, condition, "tuple")


@pytest.mark.parametrize("structure", STRUCTURES[1:])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in SEQUENCE])
def test_kinds_of_batches(method: str, structure: str):
    assert_equal_or_refused(method, "plain", structure)


@pytest.mark.long
@pytest.mark.parametrize("structure", STRUCTURES[1:])
@pytest.mark.parametrize("condition", [name for name in SHORT if name != "plain"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in SEQUENCE])
def test_conditions_with_kinds_of_batches(method: str, condition: str, structure: str):
    assert_equal_or_refused(method, condition, structure)


@pytest.mark.long
@pytest.mark.parametrize("method", FOREIGN)
def test_the_compiled_training_step(method: str):
    assert_equal_or_refused(method, "compile-step", "tuple")
