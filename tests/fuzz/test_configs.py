"""Whatever value a key is given: the run ends with a result, or with one line that names the key."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from tests.fuzz.harness import attempt, config_of
from tests.fuzz.settings import examples
from tests.fuzz.values import METHODS, keys_of, leaf, own_keys_of, wrong_values

PARTS, VALUES = 4, 4
PLAIN = "naive"  # its keys are those that all methods have
POLICIES = {"features_fn": "herding", "losses_fn": "loss_aware"}  # that call them
ALL = [(PLAIN, key) for key in keys_of(PLAIN)]
ALL += [(method, key) for method in METHODS for key in own_keys_of(method) if method != PLAIN]


def is_named(key: str, value: Any, line: str) -> bool:
    """Whether a line says which key is to blame."""
    name = leaf(key.removesuffix("._target_"))  # what cannot be imported stands beside its section
    # null switches a callback off, which another may have needed
    return name in line or (value is None and key.startswith("callbacks."))


def problems(keys: Iterable[tuple[str, str]], n: int) -> tuple[Counter, list[str]]:
    """``n`` values for each key: how the runs ended, and what should not have been."""
    counts: Counter = Counter()
    found: dict[tuple[str, str], str] = {}

    def try_one(method: str, key: str, value: Any) -> None:
        config = config_of(method)
        try:
            OmegaConf.update(config, key, value, merge=False, force_add=True)
            if leaf(key) in POLICIES:
                OmegaConf.update(config, f"{key.rpartition('.')[0]}.policy", POLICIES[leaf(key)], force_add=True)
        except OmegaConfBaseException:  # nor can the command line set it
            return
        outcome = attempt(config, [f"{key}={value}"], method)
        counts[outcome.kind] += 1
        unnamed = outcome.kind == "refused" and not is_named(key, value, outcome.text)
        if outcome.kind in ("traceback", "too long") or unnamed:
            tail = " | ".join(outcome.text.strip().splitlines()[-4:])
            found[key, outcome.text[-60:]] = f"{outcome.kind}: method={method} {key}={value!r:.100}: {tail}"

    for method, key in keys:

        @examples(n)
        @given(wrong_values(method, key))
        def try_key(value: Any) -> None:
            try_one(method, key, value)  # noqa: B023 - called before the next one

        try_key()
    return counts, list(found.values())


def test_sixty_configs():
    chosen: list[tuple[str, str]] = []

    @examples(60)
    @given(st.sampled_from(ALL))
    def choose(key: tuple[str, str]) -> None:
        chosen.append(key)

    choose()
    counts, found = problems(chosen, 1)
    assert not found, "\n".join(found)
    assert counts["refused"] > 20


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
def test_every_key_of_every_method(part: int):
    counts, found = problems(ALL[part::PARTS], VALUES)
    print("configs:", dict(counts))
    assert not found, "\n".join(found)
    assert sum(counts.values()) * PARTS >= 2000
