"""The run folder: checkpoints at stage boundaries, the progress file, and what is resumed."""

from pathlib import Path
from typing import Any

from lightning_cl._compat_fsdp2 import make_whole
from lightning_cl._sharded_tensors import gathered
from lightning_cl.errors import InputError, shortened
from lightning_cl.files import checksum, loadable, read_state, save_state
from lightning_cl.sequence.identity import config_hash, fingerprints, identity, refuse_changes
from lightning_cl.sequence.processes import on_first
from lightning_cl.sequence.records import newest_intact, read_record, write_record
from lightning_cl.sequence.state import LIGHTNING, SequenceState

INITIAL = "task0000-stage0"
ANEW = "resume=never starts anew"


def save_boundary(state: SequenceState) -> None:
    """Write model, learner and progress after a stage; the progress file is renamed last, so it never lies."""
    run_dir = state.settings.run_dir
    if run_dir is None:
        return
    # in every process: some gather
    weights, learner = gathered(state.module.state_dict()), {"version": 1, "callbacks": _states(state)}
    learner["optimizer"] = gathered(state.optimizer)
    on_first(lambda: _write(state, run_dir, weights, learner))


def _write(state: SequenceState, run_dir: Path, weights: dict[str, Any], learner: dict[str, Any]) -> None:
    stem, folder = state.boundary, run_dir / "checkpoints"
    model: dict[str, Any] = {"state_dict": weights, "pytorch-lightning_version": _lightning()}
    if dict(getattr(state.module, "hparams", {})):
        model[state.module.CHECKPOINT_HYPER_PARAMS_KEY] = loadable(dict(state.module.hparams))
    if hasattr(state.module, "on_save_checkpoint"):
        state.module.on_save_checkpoint(model)
    files = {f"{stem}.model.ckpt": model, f"{stem}.learner.ckpt": learner}
    for name, content in files.items():
        save_state(folder / name, content)
    before = read_record(run_dir / "sequence.json")
    initial = [f"{INITIAL}.model.ckpt"] if state.settings.reinitialize else []
    write_record(
        run_dir,
        {
            "version": 1,
            "checkpoint": stem,
            "previous": before["checkpoint"] if before else None,
            "config_hash": config_hash(state.settings.config),
            "n_tasks": state.n_tasks,
            "config": identity(state.settings),
            "fingerprints": fingerprints(state),
            "checksums": {name: checksum(folder / name) for name in [*files, *initial]},
            "progress": state.progress,
        },
    )
    _tidy(run_dir, {stem, before["checkpoint"] if before else None, *([INITIAL] if initial else [])})


def find_boundary(state: SequenceState) -> dict[str, Any] | None:
    """The record of the boundary from which a run goes on; None if there is nothing to go on from.

    Joint training on more tasks than before begins anew.

    Where a file of the newest boundary is damaged, it is the boundary before, and the log says so.

    Raises:
        InputError: If the run folder holds another run, other tasks, or no boundary that is intact.
    """
    run_dir = state.settings.run_dir
    if run_dir is None:
        return None
    if state.settings.resume == "never":
        clear(run_dir)
        return None
    if not (run_dir / "sequence.json").is_file():
        # checkpoints without a progress file belong to a run that nobody knows, or that was being cleared
        _tidy(run_dir, set())
        return None
    saved = newest_intact(run_dir)
    refuse_changes(state, saved, run_dir)
    if state.settings.training_data == "all" and saved["n_tasks"] < state.n_tasks:
        clear(run_dir)  # one fit of all tasks: that of fewer is not its beginning
        return None
    _tidy(run_dir, {saved["checkpoint"], saved["previous"], INITIAL, f"fit-{saved['checkpoint']}"})
    return saved


def load_boundary(state: SequenceState, saved: dict[str, Any]) -> None:
    """Put back what a boundary holds.

    Raises:
        InputError: If it was written with other callbacks or another model.
    """
    assert state.settings.run_dir is not None
    stem = state.settings.run_dir / "checkpoints" / saved["checkpoint"]
    learner = read_state(f"{stem}.learner.ckpt", ANEW)
    if state.settings.reinitialize:
        _load_model(state.initial_module, stem.with_name(f"{INITIAL}.model.ckpt"))
    known, own = learner["callbacks"], _states(state)
    if known.keys() != own.keys():
        raise InputError(
            f"callbacks {sorted(own)} for a half-done run of {sorted(known)}",
            "the same callbacks",
            ANEW,
        )
    for callback in _stateful(state):
        if hasattr(callback, "prepare_module"):
            callback.prepare_module(state.module, known[callback.state_key])
    _load_model(state.module, f"{stem}.model.ckpt")
    for callback in _stateful(state):
        if known[callback.state_key]:
            callback.load_state_dict(known[callback.state_key])
    state.optimizer = learner["optimizer"]
    state.progress = saved["progress"]


def clear(run_dir: Path) -> None:
    """Remove what an earlier run left, so that nothing of it is resumed."""
    # a kill in here leaves either the old run at its last boundary, or no run at all
    for file in (run_dir / "checkpoints").glob("fit-*"):
        file.unlink(missing_ok=True)
    for file in [run_dir / "sequence.json", run_dir / "results.json", run_dir / "model.ckpt"]:
        file.unlink(missing_ok=True)
    _tidy(run_dir, set())


def _tidy(run_dir: Path, keep: set[str | None]) -> None:
    """Remove boundaries and mid-fit checkpoints other than these, and what a kill has left of files half written."""
    for pattern in ("task*-stage*.ckpt", "task*-stage*.json", "fit-*.ckpt", "fit-*.sum", ".*task*.tmp", ".*fit-*.tmp"):
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


def load_weights(module: Any, checkpoint: dict[str, Any], path: str | Path, hint: str = ANEW) -> None:
    """Put a checkpoint's weights into a module, which grows to the checkpoint's classes if it can.

    Raises:
        InputError: If they do not fit; ``path`` and ``hint`` are for this message.
    """
    make_whole(module)
    try:
        if hasattr(module, "on_load_checkpoint"):
            module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError) as error:
        raise InputError(
            f"checkpoint {str(path)!r} does not fit the model ({shortened(error)})",
            "the same model",
            hint,
        ) from error


def _load_model(module: Any, path: str | Path) -> None:
    load_weights(module, read_state(path, ANEW), path)


def _lightning() -> str:
    import lightning.pytorch

    return lightning.pytorch.__version__
