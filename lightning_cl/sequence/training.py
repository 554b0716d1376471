"""Training the module in a stage: a new Trainer, and all that makes a killed fit go on."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl import _compat, signals
from lightning_cl.callbacks._budget import ComputeBudget
from lightning_cl.callbacks._fit_checkpoint import FitCheckpoint, damaged
from lightning_cl.callbacks._flops import FlopCounter
from lightning_cl.callbacks._gather import same_buffers, world_size
from lightning_cl.callbacks._guard import FiniteLoss
from lightning_cl.callbacks._progress import TaskProgressBar
from lightning_cl.callbacks._random_state import RandomState
from lightning_cl.callbacks._stop_on_signal import StopOnSignal
from lightning_cl.errors import InputError, Stopped, shortened
from lightning_cl.files import load_state
from lightning_cl.loggers import count_on
from lightning_cl.sequence.compute import share_of_fit
from lightning_cl.sequence.processes import on_first
from lightning_cl.sequence.state import SequenceState
from lightning_cl.streams.datamodule import TaskDataModule
from lightning_cl.streams.task import Task

log = logging.getLogger(__name__)


def train(
    state: SequenceState,
    task: Task,
    datamodule: TaskDataModule,
    stage: str,
    callbacks: Sequence[Any],
    behind: Sequence[Any] = (),
    **keywords: Any,
) -> None:
    """Train the module in a stage with a new Trainer, or go on with a training of this stage that was killed.

    What every fit has is around it: checkpoints to go on from, loggers, the progress bar, random state, the count of
    steps and FLOPs.

    Args:
        state: The sequence, at the boundary from which the stage starts.
        task: The task being learnt.
        datamodule: What to train on.
        stage: The stage's name, for the counts.
        callbacks: The method's, and the user's.
        behind: Callbacks that stand behind those.
        **keywords: The Trainer's, over the user's.

    Raises:
        Stopped: If training was asked to stop.
        InputError: If the checkpoint of a killed training cannot be read or is another model's.
    """
    checkpoint = state.fit_checkpoint()
    resuming = checkpoint is not None and on_first(lambda: _usable(checkpoint))
    flops, share = FlopCounter(), share_of_fit(state, task) if stage == "fit" else None
    budget = [] if share is None else [ComputeBudget(flops, share)]
    around = [FiniteLoss(), *callbacks, flops, *budget, *behind, RandomState()]
    trainer = _trainer(state, task, around, checkpoint, keywords)
    if share is not None and (trainer.min_epochs or trainer.min_steps):
        least = f"min_epochs={trainer.min_epochs!r}, min_steps={trainer.min_steps!r}"
        given = f"budget={state.settings.budget!r} with {least}"
        raise InputError(
            given, "a Trainer that may stop when the budget is spent", "leave min_epochs and min_steps out"
        )
    path = str(checkpoint) if resuming else None
    try:
        trainer.fit(state.module, datamodule=datamodule, ckpt_path=path, weights_only=True if resuming else None)
    except RuntimeError as error:
        bad = _bad_input(error, trainer, state.settings.num_workers, path)
        if bad is None:
            raise
        raise bad from error
    if not _compat.ended_normally(trainer):
        refuse_to_go_on(trainer)
        raise Stopped(f"stopped in task {task.id} at step {trainer.global_step}; the same command goes on")
    same_buffers(state.module)
    steps, key = state.progress["steps"], str(task.id)
    steps[key] = steps.get(key, 0) + trainer.global_step
    state.progress["flops"].setdefault(key, {})[stage] = flops.total * trainer.world_size


def _trainer(
    state: SequenceState, task: Task, around: list[Any], checkpoint: Path | None, keywords: dict[str, Any]
) -> Any:
    """The Trainer of a fit, with what writes checkpoints, listens to signals, logs and shows progress."""
    settings, run_dir = state.settings, state.settings.run_dir
    writer = FitCheckpoint(checkpoint, settings.checkpoint_every_n_steps) if checkpoint is not None else None
    around += [writer] if writer else []
    around += [StopOnSignal(writer)] if signals.active() else []
    given = getattr(settings.trainer, "keywords", {})
    steps_before = sum(state.progress["steps"].values())
    loggers = [count_on(make(save_dir=str(run_dir)), steps_before) for make in settings.loggers]
    bar = settings.progress_bar and given.get("enable_progress_bar", True)
    if bar:
        around.append(TaskProgressBar(f"task {task.id + 1}/{state.n_tasks} {settings.method}"))
    return state.trainer(
        first=[writer.before_epoch] if writer else [],
        callbacks=around,
        logger=loggers or False,
        default_root_dir=str(run_dir) if run_dir else None,
        enable_checkpointing=writer is not None,
        enable_progress_bar=bar,
        **keywords,
    )


def _bad_input(error: RuntimeError, trainer: Any, num_workers: int, resumed: str | None) -> InputError | None:
    """What a person can do about an error of a fit; None for what looks like a bug."""
    said = " ".join(str(error).split())
    if said.startswith("DataLoader worker"):
        return InputError(
            f"num_workers={num_workers}: {said.partition('.')[0]}",
            "data workers that stay alive",
            "fewer workers need less memory; the same command goes on",
        )
    if "Early stopping conditioned on metric" in said:
        known = sorted(trainer.callback_metrics)
        return InputError(f"early_stopping ({error})", f"one of {known}", "set early_stopping.monitor")
    if resumed is not None and "loading state_dict" in said:
        return InputError(
            f"checkpoint {resumed!r} does not fit the model ({shortened(said)})",
            "the same model",
            "resume=never starts anew",
        )
    return None


def _usable(checkpoint: Path) -> bool:
    """Whether a killed training can go on from here; a damaged file costs what was trained since the boundary."""
    if not checkpoint.is_file():
        return False
    try:
        if not damaged(checkpoint):
            written = load_state(checkpoint)["callbacks"].get(FitCheckpoint.__name__, {}).get("processes", world_size())
            if written == world_size():
                return True
            log.warning("%s is of %d processes; the task is trained from its start", checkpoint, written)
            return False
        why = "not as written"
    except Exception as error:
        why = type(error).__name__
    log.warning("%s damaged (%s); the task is trained from its start", checkpoint, why)
    return False


def refuse_to_go_on(trainer: Any) -> None:
    """Leave, as Lightning does in the middle of a loop, if SIGTERM came in its last step."""
    if trainer.received_sigterm:
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        raise SIGTERMException
