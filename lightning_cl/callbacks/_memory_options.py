"""Keyword arguments that callbacks with a memory hand on from class to class, with their types."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch import Tensor

from lightning_cl.functional.batches import Leaf


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
