"""What makes a half-done run the same run: its config, its settings, and the tasks that it has learnt."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.state import SequenceState

# what may differ between the parts of one run: where it runs and how it is watched, not what it computes
OUTSIDE = {
    *("data_dir", "download", "num_workers", "accelerator", "logger", "resume", "hydra"),
    *("reference_methods", "progress_bar", "prune"),
}
# of these also what a section takes: a model may have a ``prune`` or ``logger`` that decides
PLACES = {"data_dir", "download", "num_workers", "accelerator"}
GROWABLE = ("stream.n_tasks", "stream.transform.n_tasks", "limit_tasks")
NOT_COMPARED = ("run_dir", "trainer", "loggers", "config")


def config_hash(config: dict[str, Any]) -> str:
    """A hash of the values that decide what a run computes."""
    return hashlib.blake2b(json.dumps(flatten(config), sort_keys=True).encode(), digest_size=8).hexdigest()


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``, without what lies outside the hash."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if str(key) not in (PLACES if prefix else OUTSIDE):
            flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def identity(settings: Settings) -> dict[str, Any]:
    """What a half-done run may not change: the config, and the settings that are plain values."""
    plain = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in NOT_COMPARED}
    return json.loads(json.dumps(flatten({**plain, **settings.config})))


def fingerprints(state: SequenceState) -> list[Any]:
    """Of the data of every task that has been learnt, and of the one that is being learnt."""
    known = min(state.progress["task"] + 1, len(state.stream))
    return [state.stream.fingerprint(task) for task in range(known)]


def refuse_changes(state: SequenceState, saved: dict[str, Any], run_dir: Path) -> None:
    """Refuse a run folder that holds another run.

    Raises:
        InputError: With the values that differ, or the first task whose data differ.
    """
    old, new = saved["config"], identity(state.settings)
    longer = state.n_tasks >= saved["n_tasks"]
    differing = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and not (longer and _grew(k, old, new))]
    if differing:
        changes = ", ".join(f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in differing[:8])
        raise InputError(
            f"config differs from the half-done run in {str(run_dir)!r} ({changes})",
            "the same config",
            "resume=never starts anew, hydra.run.dir=FOLDER keeps both",
        )
    for task, fingerprint in enumerate(saved["fingerprints"]):
        if task >= len(state.stream) or state.stream.fingerprint(task) != fingerprint:
            raise InputError(
                f"task {task} of the stream is not the one that was learnt in {str(run_dir)!r}",
                "the same data for tasks already learnt",
                "resume=never starts anew",
            )


def _grew(key: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
    """True for a value that makes a stream longer; the fingerprints see to the tasks that have been learnt."""
    before, after = old.get(key), new.get(key)
    if key in GROWABLE:
        return True
    return isinstance(before, list) and isinstance(after, list) and after[: len(before)] == before and "stream" in key
