"""The run folder: checkpoints at stage boundaries, the progress file, and what may be resumed."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import load_state, loadable, save_state, write_json
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.state import LIGHTNING, SequenceState

# what may differ between the parts of one run: where it runs and how it is watched, not what it computes
OUTSIDE = {
    *("data_dir", "download", "num_workers", "accelerator", "logger", "resume", "hydra"),
    *("reference_methods", "progress_bar"),
}
GROWABLE = ("stream.n_tasks", "limit_tasks")
NOT_COMPARED = ("run_dir", "trainer", "loggers", "config")
INITIAL = "task0000-stage0"


def config_hash(config: dict[str, Any]) -> str:
    """A hash of the values that decide what a run computes."""
    return hashlib.blake2b(json.dumps(flatten(config), sort_keys=True).encode(), digest_size=8).hexdigest()


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``, without what lies outside the hash."""
    if not isinstance(config, dict):
        return {prefix: config}
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if str(key) not in OUTSIDE:
            flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def identity(settings: Settings) -> dict[str, Any]:
    """What a half-done run may not change: the config, and the settings that are plain values."""
    plain = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name not in NOT_COMPARED}
    return json.loads(json.dumps(flatten({**plain, **settings.config})))


def save_boundary(state: SequenceState) -> None:
    """Write model, learner and progress after a stage; the progress file is renamed last, so it never lies."""
    run_dir = state.settings.run_dir
    if run_dir is None:
        return
    progress, stem = state.progress, state.boundary
    folder = run_dir / "checkpoints"
    model: dict[str, Any] = {"state_dict": state.module.state_dict(), "pytorch-lightning_version": _lightning()}
    if dict(getattr(state.module, "hparams", {})):
        model[state.module.CHECKPOINT_HYPER_PARAMS_KEY] = loadable(dict(state.module.hparams))
    if hasattr(state.module, "on_save_checkpoint"):
        state.module.on_save_checkpoint(model)
    save_state(folder / f"{stem}.model.ckpt", model)
    learner = {"version": 1, "callbacks": _states(state), "optimizer": state.optimizer}
    save_state(folder / f"{stem}.learner.ckpt", learner)
    before = _read(run_dir)
    write_json(
        run_dir / "sequence.json",
        {
            "version": 1,
            "checkpoint": stem,
            "previous": before["checkpoint"] if before else None,
            "config_hash": config_hash(state.settings.config),
            "n_tasks": state.n_tasks,
            "config": identity(state.settings),
            "fingerprints": [state.stream.fingerprint(t) for t in range(min(progress["task"] + 1, len(state.stream)))],
            "progress": progress,
        },
    )
    keep: set[str | None] = {stem, before["checkpoint"] if before else None}
    if state.settings.reinitialize:
        keep.add(INITIAL)
    _tidy(run_dir, keep)


def load_boundary(state: SequenceState) -> bool:
    """Go on where the run folder says; False if there is nothing to go on from.

    Raises:
        InputError: If the run folder holds another run, other tasks, or files that cannot be read.
    """
    run_dir = state.settings.run_dir
    if run_dir is None:
        return False
    if state.settings.resume == "never":
        clear(run_dir)
        return False
    saved = _read(run_dir)
    if saved is None:
        # a fit's checkpoint without a progress file belongs to a run that nobody knows
        _tidy(run_dir, set())
        return False
    _refuse_changes(state, saved, run_dir)
    _tidy(run_dir, {saved["checkpoint"], saved["previous"], INITIAL, f"fit-{saved['checkpoint']}"})
    stem = run_dir / "checkpoints" / saved["checkpoint"]
    learner = _load(f"{stem}.learner.ckpt")
    if state.settings.reinitialize:
        _load_model(state.initial_module, stem.with_name(f"{INITIAL}.model.ckpt"))
    _load_model(state.module, f"{stem}.model.ckpt")
    known, own = learner["callbacks"], _states(state)
    if known.keys() != own.keys():
        raise InputError(
            f"callbacks {sorted(own)} for a half-done run of {sorted(known)}",
            "the same callbacks",
            "resume=never starts anew",
        )
    for callback in _stateful(state):
        if known[callback.state_key]:
            callback.load_state_dict(known[callback.state_key])
    state.optimizer = learner["optimizer"]
    state.progress = saved["progress"]
    return True


def clear(run_dir: Path) -> None:
    """Remove what an earlier run left, so that nothing of it is resumed."""
    # a kill in here leaves either the old run at its last boundary, or no run at all
    for file in (run_dir / "checkpoints").glob("fit-*.ckpt"):
        file.unlink(missing_ok=True)
    for file in [run_dir / "sequence.json", run_dir / "results.json", run_dir / "model.ckpt"]:
        file.unlink(missing_ok=True)
    _tidy(run_dir, set())


def _tidy(run_dir: Path, keep: set[str | None]) -> None:
    """Remove boundaries and mid-fit checkpoints other than these, and what a kill has left of files half written."""
    for pattern in ("task*-stage*.ckpt", "fit-*.ckpt", ".task*.tmp", ".fit-*.tmp"):
        for file in (run_dir / "checkpoints").glob(pattern):
            if file.name.split(".")[0] not in keep:
                file.unlink(missing_ok=True)
    for name in ("sequence.json", "results.json", "model.ckpt", "report.html"):
        for file in run_dir.glob(f".{name}.*.tmp"):
            file.unlink(missing_ok=True)


def _stateful(state: SequenceState) -> list[Any]:
    """Callbacks whose state outlives a fit."""
    return [c for c in state.callbacks if hasattr(c, "state_dict") and not type(c).__module__.startswith(LIGHTNING)]


def _states(state: SequenceState) -> dict[str, Any]:
    states = {c.state_key: c.state_dict() for c in _stateful(state)}
    if len(states) < len(_stateful(state)):
        raise InputError(
            f"callbacks with the same state_key, of {sorted(states)}", "one state for each", "give each its own name="
        )
    return states


def _load(path: str | Path) -> dict[str, Any]:
    try:
        return load_state(path)
    except Exception as error:
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__})",
            "an intact checkpoint",
            "resume=never starts anew",
        ) from error


def load_weights(
    module: Any, checkpoint: dict[str, Any], path: str | Path, hint: str = "resume=never starts anew"
) -> None:
    """Put a checkpoint's weights into a module, which grows to the checkpoint's classes if it can.

    Raises:
        InputError: If they do not fit; ``path`` and ``hint`` are for this message.
    """
    try:
        if hasattr(module, "on_load_checkpoint"):
            module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} does not fit the model ({' '.join(str(error).split())[:200]})",
            "the same model",
            hint,
        ) from error


def _load_model(module: Any, path: str | Path) -> None:
    load_weights(module, _load(path), path)


def _read(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "sequence.json"
    if not path.is_file():
        return None
    try:
        saved = json.loads(path.read_text())
        return saved if saved["version"] == 1 else None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(path)!r} cannot be read", "a progress file of this program", "resume=never") from error


def _refuse_changes(state: SequenceState, saved: dict[str, Any], run_dir: Path) -> None:
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


def _lightning() -> str:
    import lightning.pytorch

    return lightning.pytorch.__version__
