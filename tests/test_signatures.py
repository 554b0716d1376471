"""What can be set from a config, also where a constructor hands it on."""

from typing import Any

import pytest

from lightning_cl._signatures import keyword_arguments
from lightning_cl._types import refuse_wrong_kinds
from lightning_cl.errors import InputError
from tests.fuzz.values import keys_of

MEMORY = ["policy_options", "memory_bytes", "max_age", "id_fn", "storage", "path", "keep_states", "stores"]
MEMORY += ["deletion_log", "features_fn", "losses_fn"]


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("lightning_cl.Replay", ["memory_size", "policy", *MEMORY]),
        ("lightning_cl.EWC", ["lambda_", "apply", "include", "importance_dtype", "select", "state_path"]),
        ("lightning_cl.WiSEFT", ["choose", "select", "name"]),  # **method: Any, for its base
        ("lightning.pytorch.Trainer", ["precision", "max_epochs"]),
        ("lightning_cl.errors.shortest", []),
        ("no.such", []),
        (3, []),
    ],
)
def test_arguments_by_name(target: Any, names: list[str]):
    found = keyword_arguments(target)
    assert set(names) <= set(found)
    assert "self" not in found
    assert bool(found) == bool(names)


def test_what_a_class_fixes_is_not_among_them():
    assert not {"storage", "id_fn", "lambda_"} & set(keyword_arguments("lightning_cl.ShrinkAndPerturb"))


def test_the_fuzz_sees_them():
    assert {f"callbacks.er.{name}" for name in MEMORY} <= set(keys_of("er"))
    assert "callbacks.ewc.importance_path" in keys_of("ewc")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("id_fn", 3, "a section with a _target_"),
        ("id_fn", "abc", "a section with a _target_"),
        ("id_fn", [1], "a section with a _target_"),
        ("features_fn", 3, "a section with a _target_"),
        ("losses_fn", 3, "a section with a _target_"),
        ("policy_options", "abc", "a mapping or null"),
        ("max_age", 1.5, "an integer or null"),
        ("storage", "tape", "'ram' or 'disk'"),
        ("deletion_log", 3, "a word or a path or null"),
    ],
)
def test_wrong_kinds_behind_unpacked_options_are_refused(key: str, value: Any, expected: str):
    section = {"_target_": "lightning_cl.Replay", "memory_size": 3, key: value}
    with pytest.raises(InputError, match=rf"^callbacks\.er\.{key}=.*; expected {expected}"):
        refuse_wrong_kinds({"callbacks": {"er": section}})
