"""The two parts of BiC's memory: what is replayed, and what its correction is fitted on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_cl.callbacks._memory_options import FIXED_POLICY
from lightning_cl.errors import InputError
from lightning_cl.memory import Memory

#: It has two memories, each with a share for every class, and leaves samples out of what it is given.
REFUSED = {
    **FIXED_POLICY,
    "memory_bytes": "set memory_size, of which every class has its share",
    "max_age": "leave it out; every class has its share, whatever its age",
    "stores": "leave it out; it stores samples, also with storage='disk'",
    "id_fn": "name the ids in the batch: an integer leaf named id, sample_id or index",
    "deletion_log": "leave it out; delete in both: bic.memory.delete(ids), bic.validation.delete(ids)",
}


def held_out_sizes(memory_size: int, max_per_class: int | None, fraction: float) -> tuple[int, int | None]:
    """Samples of the second part, in all and at most of a class (None without a limit).

    Raises:
        InputError: If a part would hold nothing.
    """
    if not isinstance(fraction, int | float) or not 0 < fraction < 1:
        raise InputError(f"validation_fraction={fraction!r}", "a number in (0, 1)", "0.1 is the default")
    held = round(fraction * memory_size) if isinstance(memory_size, int) else 0
    if isinstance(memory_size, int) and memory_size != 0 and not 0 < held < memory_size:
        raise InputError(
            f"memory_size={memory_size!r} with validation_fraction={fraction!r}",
            "a memory of which both parts hold a sample",
            "set memory_size=200",
        )
    return held, None if max_per_class is None else max(1, round(fraction * max_per_class))


def held_out_memory(size: int, max_per_class: int | None, seed: int, options: Mapping[str, Any]) -> Memory:
    """The second part: stored as the first one is, in a folder of its own inside that one's."""
    path = options.get("path")
    places = {**options, "path": None if path is None else Path(path) / "validation"}
    places = {name: places[name] for name in ("storage", "path", "keep_states") if name in places}
    return Memory(size, "class_balanced", seed, max_per_class=max_per_class, **places)
