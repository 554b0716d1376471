"""The run folder: checkpoints at stage boundaries, the progress file, and what may be resumed."""

import hashlib
import json
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import load_state, save_state, write_json
from lightning_cl.sequence.state import SequenceState

# what may differ between the parts of one run: where it runs and how it is watched, not what it computes
OUTSIDE = {
    *("data_dir", "download", "num_workers", "accelerator", "logger", "resume", "hydra"),
    *("reference_methods", "progress_bar"),
}
GROWABLE = ("stream.n_tasks", "limit_tasks")


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


def save_boundary(state: SequenceState) -> None:
    """Write model, learner and progress after a stage; the progress file is renamed last, so it never lies."""
    run_dir = state.settings.run_dir
    if run_dir is None:
        return
    progress = state.progress
    folder = run_dir / "checkpoints"
    stem = f"task{progress['task']:04d}-stage{progress['stage']}"
    model: dict[str, Any] = {"state_dict": state.module.state_dict(), "pytorch-lightning_version": _lightning()}
    if dict(getattr(state.module, "hparams", {})):
        model[state.module.CHECKPOINT_HYPER_PARAMS_KEY] = dict(state.module.hparams)
    if hasattr(state.module, "on_save_checkpoint"):
        state.module.on_save_checkpoint(model)
    save_state(folder / f"{stem}.model.ckpt", model)
    learner = {
        "version": 1,
        "callbacks": {c.state_key: c.state_dict() for c in state.callbacks if hasattr(c, "state_dict")},
        "optimizer": state.optimizer,
    }
    save_state(folder / f"{stem}.learner.ckpt", learner)
    before = _read(run_dir)
    write_json(
        run_dir / "sequence.json",
        {
            "version": 1,
            "checkpoint": stem,
            "previous": before["checkpoint"] if before else None,
            "config_hash": config_hash(state.settings.config),
            "config": flatten(state.settings.config),
            "fingerprints": [state.stream.fingerprint(t) for t in range(min(progress["task"] + 1, len(state.stream)))],
            "progress": progress,
        },
    )
    keep = {stem, before["checkpoint"] if before else stem}
    for file in folder.glob("task*-stage*.ckpt"):
        if file.name.split(".")[0] not in keep:
            file.unlink(missing_ok=True)


def load_boundary(state: SequenceState) -> bool:
    """Go on where the run folder says; False if there is nothing to go on from."""
    run_dir = state.settings.run_dir
    if run_dir is None:
        return False
    if state.settings.resume == "never":
        clear(run_dir)
        return False
    saved = _read(run_dir)
    if saved is None:
        return False
    _refuse_changes(state, saved, run_dir)
    stem = run_dir / "checkpoints" / saved["checkpoint"]
    try:
        model, learner = load_state(f"{stem}.model.ckpt"), load_state(f"{stem}.learner.ckpt")
    except Exception as error:
        raise InputError(
            f"checkpoint {str(stem)!r} cannot be read ({type(error).__name__})", "an intact checkpoint", "resume=never"
        ) from error
    if hasattr(state.module, "on_load_checkpoint"):
        state.module.on_load_checkpoint(model)
    try:
        state.module.load_state_dict(model["state_dict"])
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise InputError(
            f"checkpoint {str(stem)!r} does not fit the model ({first})", "the same model", "resume=never"
        ) from error
    for callback in state.callbacks:
        if callback.state_key in learner["callbacks"] and hasattr(callback, "load_state_dict"):
            callback.load_state_dict(learner["callbacks"][callback.state_key])
    state.optimizer = learner["optimizer"]
    state.progress = saved["progress"]
    return True


def clear(run_dir: Path) -> None:
    """Remove what an earlier run left, so that nothing of it is resumed."""
    for file in [run_dir / "sequence.json", run_dir / "results.json", run_dir / "model.ckpt"]:
        file.unlink(missing_ok=True)
    for file in (run_dir / "checkpoints").glob("*.ckpt"):
        file.unlink(missing_ok=True)


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
    old, new = saved["config"], json.loads(json.dumps(flatten(state.settings.config)))
    differing = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key) and not _grew(key, old, new)]
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
    """True for a stream that only became longer; the fingerprints see to its learnt tasks."""
    before, after = old.get(key), new.get(key)
    if key in GROWABLE:
        return after is None or (before is not None and after >= before)
    return isinstance(before, list) and isinstance(after, list) and after[: len(before)] == before and "stream" in key


def _lightning() -> str:
    import lightning.pytorch

    return lightning.pytorch.__version__
