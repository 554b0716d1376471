"""Keyword arguments that callbacks with a memory hand on from class to class, with their types."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf

#: What is as good as an option that is not given.
DEFAULTS: dict[str, Any] = {"storage": "ram", "stores": "samples", "keep_states": 4}
#: Of methods that choose by a policy of their own.
FIXED_POLICY = dict.fromkeys(
    ("policy_options", "features_fn", "losses_fn"), "leave it out; Replay and the methods with policy= take it"
)


class StorageOptions(TypedDict, total=False):
    """Those of :class:`~lightning_cl.memory.Memory` that are handed to it as they are."""

    policy_options: Mapping[str, Any] | None
    memory_bytes: int | str | None
    max_age: int | None
    id_fn: Callable[[Any], Leaf] | None
    storage: Literal["ram", "disk"]
    path: str | Path | None
    keep_states: int
    stores: Literal["samples", "references"]
    deletion_log: str | Path | None


class MemoryOptions(StorageOptions, total=False):
    """Those of :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`."""

    features_fn: Callable[[Any, Any], Tensor] | None
    losses_fn: Callable[[Any, Any], Tensor] | None


def refuse_options(method: str, given: Mapping[str, Any], hints: Mapping[str, str]) -> None:
    """Refuse the options of a memory that a method cannot do anything with.

    Args:
        method: Its name.
        given: The options that it was given.
        hints: For each of those it cannot take, what to do instead.

    Raises:
        InputError: With the name of the first of them.
    """
    for name, hint in hints.items():
        value = given.get(name)
        if value is not None and value != DEFAULTS.get(name):
            shown = "a function" if callable(value) else repr(value)
            raise InputError(f"{name}={shown} with {method}", f"{method} without {name}", hint)
