"""What a memory may be asked for."""

import re
from collections.abc import Mapping
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.memory._places import check_folder, check_log
from lightning_cl.memory.policies import POLICIES, Policy

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(value: int | str) -> int:
    """A number of bytes.

    Raises:
        InputError: For anything but a positive number with or without a unit.

    Example:
        >>> parse_bytes("200MB"), parse_bytes("1.5 GiB")
        (200000000, 1610612736)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\s*", str(value).lower())
    number = int(float(found[1]) * UNITS[found[2]]) if found and not isinstance(value, bool) else 0
    if number < 1:
        raise InputError(f"memory_bytes={value!r}", "a number of bytes, such as '200MB' or '1GiB'", "'200MB'")
    return number


def check_size(size: Any, memory_bytes: Any) -> None:
    """One of the two, and a sensible one."""
    if size is None and memory_bytes is None:
        raise InputError("memory_size=None", "a number of samples, or memory_bytes", "set memory_size=200")
    if size is not None and memory_bytes is not None:
        raise InputError(
            f"memory_size={size!r} and memory_bytes={memory_bytes!r}", "one of the two", "set memory_size=None"
        )
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        expected = "an integer >= 0 (with 0 nothing is stored)"
        raise InputError(f"memory_size={size!r}", expected, "set memory_size=200")


def make_policy(name: str, max_per_class: int | None, options: Mapping[str, Any] | None) -> Policy:
    """The policy of this name."""
    if name not in POLICIES:
        raise InputError(f"policy={name!r}", f"one of {', '.join(POLICIES)}", "policy='reservoir' is the default")
    keywords = dict(options or {})
    if max_per_class is not None:
        if name != "class_balanced" or not isinstance(max_per_class, int) or max_per_class < 1:
            raise InputError(
                f"max_per_class={max_per_class!r} with policy={name!r}",
                "an integer >= 1 with policy 'class_balanced'",
                "leave max_per_class out",
            )
        keywords["max_per_class"] = max_per_class
    try:
        return POLICIES[name](**keywords)
    except TypeError as error:
        raise InputError(
            f"policy_options={keywords!r} with policy={name!r}",
            "arguments of that policy",
            "see lightning_cl.memory.policies",
        ) from error


def check_places(
    storage: str, path: Any, stores: str, max_age: Any, keep_states: Any, deletion_log: Any = None
) -> None:
    """Where and what is stored, and for how long."""
    if storage not in ("ram", "disk"):
        raise InputError(f"storage={storage!r}", "'ram' or 'disk'", "leave it out for 'ram'")
    if stores not in ("samples", "references"):
        raise InputError(f"stores={stores!r}", "'samples' or 'references'", "leave it out for 'samples'")
    if (storage == "disk") != (path is not None):
        raise InputError(
            f"path={path!r} with storage={storage!r}", "a folder of its own for storage='disk'", "path='memory'"
        )
    if storage == "disk" and stores == "references":
        raise InputError(
            "stores='references' with storage='disk'", "storage='ram'", "references take 16 bytes each, 24 with a label"
        )
    if path is not None:
        check_folder(path)
    if deletion_log is not None:
        check_log(deletion_log)
    for name, value in (("max_age", max_age), ("keep_states", keep_states)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InputError(f"{name}={value!r}", "an integer >= 1", "leave it out")
