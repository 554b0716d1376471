"""The stages that every method has: fit, consolidate, evaluate."""

import contextlib
import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl import _compat, signals
from lightning_cl._compat_sharded import whole
from lightning_cl.callbacks._best import BestWeights
from lightning_cl.callbacks._budget import ComputeBudget
from lightning_cl.callbacks._carry import CarryOptimizer
from lightning_cl.callbacks._continual_evaluation import ContinualEvaluation
from lightning_cl.callbacks._fit_checkpoint import FitCheckpoint, damaged
from lightning_cl.callbacks._flops import CountedLoader, FlopCounter
from lightning_cl.callbacks._gather import same_buffers, world_size
from lightning_cl.callbacks._guard import FiniteLoss
from lightning_cl.callbacks._own_data import OwnData
from lightning_cl.callbacks._progress import TaskProgressBar
from lightning_cl.callbacks._random_state import RandomState
from lightning_cl.callbacks._stop_on_signal import StopOnSignal
from lightning_cl.errors import InputError, Stopped
from lightning_cl.files import load_state
from lightning_cl.finetuning._evaluation import EvaluationSteps
from lightning_cl.loggers import count_on
from lightning_cl.sequence.compute import share_of_fit
from lightning_cl.sequence.fit_options import early_stopping, refuse_averaging_of_a_growing_head
from lightning_cl.sequence.processes import on_first
from lightning_cl.sequence.state import SequenceState, Stage
from lightning_cl.streams.datamodule import TaskDataModule
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.stream import merge_tasks
from lightning_cl.streams.task import Task

log = logging.getLogger(__name__)


def stages_of(state: SequenceState) -> list[Stage]:
    """The method's stages in order: fit, consolidate, and those its callbacks declare behind them."""
    stages = [Stage("fit", fit), Stage("consolidate", consolidate, after="fit")]
    for callback in state.callbacks:
        for stage in callback.stages() if hasattr(callback, "stages") else []:
            names = [s.name for s in stages]
            if stage.after not in [None, *names] or stage.name in names:
                raise InputError(f"stage {stage.name!r} after {stage.after!r}", f"a new name, after one of {names}", "")
            stages.insert(0 if stage.after is None else names.index(stage.after) + 1, stage)
    return stages


def own_data(state: SequenceState) -> OwnData | None:
    """The callback that says what is trained on, if there is one."""
    found = [callback for callback in state.callbacks if isinstance(callback, OwnData)]
    if len(found) > 1 or (found and state.settings.training_data != "current"):
        names = [callback.name for callback in found]
        data = state.settings.training_data
        raise InputError(
            f"methods {names} with training_data={data!r}",
            "one method that says what is trained on, with training_data='current'",
            "leave the other out",
        )
    return found[0] if found else None


def task_data(state: SequenceState, task: Task, own: OwnData | None = None) -> TaskDataModule:
    """The DataModule of a fit: the task's own data, those of all tasks so far, or what ``own`` says."""
    settings = state.settings
    size = own.epoch_size(task) if own else None
    if own:
        task = own.training_task(task, state.stream[: task.id + 1])
    elif settings.training_data != "current":
        task = merge_tasks(state.stream[: task.id + 1], id=task.id, name=task.name)
    datamodule = TaskDataModule(
        task,
        batch_size=state.batch_size,
        eval_batch_size=settings.eval_batch_size,
        num_workers=settings.num_workers,
        seed=settings.seed,
        drop_last=settings.drop_last,
        updates_per_batch=settings.updates_per_batch,
        sampling=own.sampling if own else "once",
        epoch_size=size,
    )
    datamodule.own_data = own  # type: ignore[attr-defined]
    datamodule.seen_tasks = state.stream[: task.id + 1]  # type: ignore[attr-defined]
    return datamodule


def fit(state: SequenceState, task: Task) -> None:
    """Train on a task, or go on with a training that was killed."""
    settings = state.settings
    if settings.reinitialize:
        state.module = copy.deepcopy(state.initial_module)
    refuse_averaging_of_a_growing_head(state)
    carry = CarryOptimizer(state.optimizer)
    behind: list[Any] = []
    goes_on = not state.has_boundaries and getattr(state.module, "automatic_optimization", True)
    if settings.optimizer_state == "keep" or goes_on:
        behind.append(carry)
    if settings.evaluate_every_n_steps:
        behind.append(ContinualEvaluation(state, task))
    best = _best_weights(state, task)
    stopping = early_stopping(settings, task)
    behind += [each for each in (best, stopping) if each]
    own = own_data(state)
    limits: dict[str, Any] = {} if own is None or own.max_epochs is None else {"max_epochs": own.max_epochs}
    if settings.budget is not None and own and own.spends_budget:
        limits = {"max_epochs": -1, "max_steps": -1}
    train(state, task, task_data(state, task, own), "fit", state.fit_callbacks(), behind, **limits)
    if best:
        best.load_into(state.module)
    state.optimizer = carry.state


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
    settings, run_dir = state.settings, state.settings.run_dir
    checkpoint = state.fit_checkpoint()
    resuming = checkpoint is not None and on_first(lambda: _usable(checkpoint))
    flops, share = FlopCounter(), share_of_fit(state, task) if stage == "fit" else None
    budget = [] if share is None else [ComputeBudget(flops, share)]
    around: list[Any] = [FiniteLoss(), *callbacks, flops, *budget, *behind, RandomState()]
    first = []
    writer = None
    if checkpoint is not None:
        writer = FitCheckpoint(checkpoint, settings.checkpoint_every_n_steps)
        around.append(writer)
        first.append(writer.before_epoch)
    if signals.active():
        around.append(StopOnSignal(writer))
    given = getattr(settings.trainer, "keywords", {})
    steps_before = sum(state.progress["steps"].values())
    loggers = [count_on(make(save_dir=str(run_dir)), steps_before) for make in settings.loggers]
    bar = settings.progress_bar and given.get("enable_progress_bar", True)
    if bar:
        around.append(TaskProgressBar(f"task {task.id + 1}/{state.n_tasks} {settings.method}"))
    trainer = state.trainer(
        first=first,
        callbacks=around,
        logger=loggers or False,
        default_root_dir=str(run_dir) if run_dir else None,
        enable_checkpointing=checkpoint is not None,
        enable_progress_bar=bar,
        **keywords,
    )
    if share is not None and (trainer.min_epochs or trainer.min_steps):
        given = f"budget={settings.budget!r} with min_epochs={trainer.min_epochs!r}, min_steps={trainer.min_steps!r}"
        raise InputError(
            given, "a Trainer that may stop when the budget is spent", "leave min_epochs and min_steps out"
        )
    try:
        trainer.fit(
            state.module,
            datamodule=datamodule,
            ckpt_path=str(checkpoint) if resuming else None,
            weights_only=True if resuming else None,
        )
    except RuntimeError as error:
        if str(error).startswith("DataLoader worker"):
            raise InputError(
                f"num_workers={settings.num_workers}: {str(error).partition('.')[0]}",
                "data workers that stay alive",
                "fewer workers need less memory; the same command goes on",
            ) from error
        if "Early stopping conditioned on metric" in str(error):
            known = sorted(trainer.callback_metrics)
            raise InputError(f"early_stopping ({error})", f"one of {known}", "set early_stopping.monitor") from error
        if not resuming or "loading state_dict" not in str(error):
            raise
        raise InputError(
            f"checkpoint {str(checkpoint)!r} does not fit the model ({' '.join(str(error).split())[:200]})",
            "the same model",
            "resume=never starts anew",
        ) from error
    if not _compat.ended_normally(trainer):
        refuse_to_go_on(trainer)
        raise Stopped(f"stopped in task {task.id} at step {trainer.global_step}; the same command goes on")
    same_buffers(state.module)
    steps, key = state.progress["steps"], str(task.id)
    steps[key] = steps.get(key, 0) + trainer.global_step
    state.progress["flops"].setdefault(key, {})[stage] = flops.total * trainer.world_size


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


def _best_weights(state: SequenceState, task: Task) -> BestWeights | None:
    settings = state.settings
    if settings.select == "last":
        return None
    if task.validation is None:
        raise InputError("select='best' without validation data", "a validation split", "set validation_fraction=0.1")
    return BestWeights(settings.monitor, settings.monitor_mode)


def refuse_to_go_on(trainer: Any) -> None:
    """Leave, as Lightning does in the middle of a loop, if SIGTERM came in its last step."""
    if trainer.received_sigterm:
        from lightning.pytorch.utilities.exceptions import SIGTERMException

        raise SIGTERMException


def consolidate(state: SequenceState, task: Task) -> None:
    """Let every callback take from the task what its method needs later."""
    loader_of = task_data(state, task)
    device = state.trainer().strategy.root_device
    state.module.to(device)
    flops = 0
    for callback in state.method_callbacks:
        with CountedLoader(loader_of.importance_dataloader(), stoppable=True) as loader, state.as_fitted():
            callback.consolidate(None, state.module, loader)
        flops += loader.flops
    state.progress["flops"].setdefault(str(task.id), {})["consolidate"] = flops


def evaluate(state: SequenceState, task: Task | None) -> None:
    """Fill the accuracy matrix's row of a task, in one pass over all tasks; before any training if task is None."""
    seen, metric = 0 if task is None else task.id + 1, state.settings.metric
    tests = [t.test for t in state.stream]
    known = min(seen, state.settings.trained_tasks or seen)
    # a head of its own for each task has none yet for a task that was not trained; a shared one has its own answers
    own_heads = getattr(state.module, "reads", None) == "task"
    rows = measured(state, state.module, tests[: known if own_heads else seen])
    if own_heads and known < seen:
        untrained = measured(state, _knowing_all_classes(state), tests[known:seen])
        rows = {name: rows[name] + untrained[name] for name in rows}
    if seen < len(tests) and (task is None or state.settings.evaluate_future):
        future = measured(state, _knowing_all_classes(state), tests[seen:])
        rows = {name: rows.get(name, [None] * seen) + future.get(name, []) for name in {**rows, **future}}
    rows = {name: row + [None] * (len(tests) - len(row)) for name, row in rows.items()}
    if task is None:
        state.progress["random_init"] = rows[metric]
        return
    state.progress["rows"][str(task.id)] = rows.pop(metric)
    for name, row in rows.items():
        state.progress.setdefault("other_rows", {}).setdefault(name, {})[str(task.id)] = row
    validation = [t.validation for t in state.stream[:seen]]
    if all(data is not None for data in validation):
        row = measured(state, state.module, validation)[metric]
        state.progress["validation_rows"][str(task.id)] = row + [None] * (len(state.stream) - len(row))


def _knowing_all_classes(state: SequenceState) -> Any:
    """The module for tasks that are still to come; one that grows is copied, and gets their rows, untrained."""
    if not hasattr(state.module, "learn_classes"):
        return state.module
    with whole(state.module):
        module = copy.deepcopy(state.module)
    module.learn_classes(state.stream.class_names, [t.class_indices for t in state.stream])
    return module


def measured(state: SequenceState, module: Any, data: list[Any]) -> dict[str, list[float | None]]:
    """The run's metric, and whatever else ``test_step`` logs for each dataloader: one value for each of ``data``."""
    settings = state.settings
    if not data:
        return {settings.metric: []}
    # metrics of ours are summed over processes; what another module logs need not be
    shared = isinstance(module, EvaluationSteps)
    with contextlib.ExitStack() as stack:
        loaders = [
            stack.enter_context(
                CountedLoader(
                    TaskLoader(d, settings.eval_batch_size, num_workers=settings.num_workers, shared=shared),
                    stoppable=True,
                )
            )
            for d in data
        ]
        trainer = state.trainer(enable_progress_bar=False, enable_checkpointing=False)
        trainer.test(module, dataloaders=loaders, verbose=False)
    refuse_to_go_on(trainer)
    state.progress["evaluation_flops"] += sum(loader.flops for loader in loaders)
    logged = {key: float(value) for key, value in trainer.callback_metrics.items()}
    places = [f"/dataloader_idx_{i}" for i in range(len(loaders))] if len(loaders) > 1 else [""]
    names = [key.removesuffix(places[0]) for key in logged if key.endswith(places[0])]
    found: dict[str, list[float | None]] = {
        name.removeprefix("test_"): [logged[name + place] for place in places]
        for name in names
        if name.startswith("test_") and all(name + place in logged for place in places)
    }
    if settings.metric not in found:
        if trainer.limit_test_batches == 0:
            raise InputError("limit_test_batches=0", "test data, at least one batch", "leave it out")
        key = f"test_{settings.metric}"
        raise InputError(f"test_step logged {sorted(logged)}", f"a metric {key + places[0]!r}", f"log {key!r} there")
    return found
