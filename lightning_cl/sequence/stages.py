"""The stages that every method has: fit, consolidate, evaluate."""

import copy
from typing import Any

from lightning_cl import _compat
from lightning_cl.callbacks._carry import CarryOptimizer
from lightning_cl.callbacks._continual_evaluation import ContinualEvaluation
from lightning_cl.callbacks._fit_checkpoint import FitCheckpoint
from lightning_cl.callbacks._flops import CountedLoader, FlopCounter
from lightning_cl.callbacks._guard import FiniteLoss
from lightning_cl.callbacks._progress import TaskProgressBar
from lightning_cl.callbacks._random_state import RandomState
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.sequence.state import SequenceState, Stage
from lightning_cl.streams.datamodule import TaskDataModule
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.stream import merge_tasks
from lightning_cl.streams.task import Task


class Stopped(RuntimeError):
    """Training was asked to stop before its end; the same command goes on later."""


def stages_of(state: SequenceState) -> list[Stage]:
    """The method's stages in order: fit, consolidate, and those its callbacks declare behind them."""
    stages = [Stage("fit", fit), Stage("consolidate", consolidate, after="fit")]
    for callback in state.callbacks:
        for stage in callback.stages() if hasattr(callback, "stages") else []:
            names = [s.name for s in stages]
            if stage.after not in names or stage.name in names:
                raise InputError(f"stage {stage.name!r} after {stage.after!r}", f"a new name, after one of {names}", "")
            stages.insert(names.index(stage.after) + 1, stage)
    return stages


def task_data(state: SequenceState, task: Task) -> TaskDataModule:
    """The DataModule of a fit: the task's own data, or those of all tasks so far."""
    settings = state.settings
    if settings.training_data != "current":
        task = merge_tasks(state.stream[: task.id + 1], id=task.id, name=task.name)
    datamodule = TaskDataModule(
        task,
        batch_size=settings.batch_size,
        eval_batch_size=settings.eval_batch_size,
        num_workers=settings.num_workers,
        seed=settings.seed,
        drop_last=settings.drop_last,
    )
    datamodule.seen_tasks = state.stream[: task.id + 1]  # type: ignore[attr-defined]
    return datamodule


def fit(state: SequenceState, task: Task) -> None:
    """Train on a task with a new Trainer, or go on with a training that was killed."""
    settings, run_dir = state.settings, state.settings.run_dir
    checkpoint = state.fit_checkpoint(task.id)
    resuming = checkpoint is not None and checkpoint.is_file()
    if settings.reinitialize:
        state.module = copy.deepcopy(state.initial_module)
    flops, carry = FlopCounter(), CarryOptimizer(state.optimizer)
    callbacks: list[Any] = [RandomState(), FiniteLoss(), *state.callbacks, flops]
    if settings.optimizer_state == "keep":
        callbacks.append(carry)
    if settings.evaluate_every_n_steps:
        callbacks.append(ContinualEvaluation(state, task))
    best = _best_checkpoint(state, task)
    callbacks += [best] if best else []
    if checkpoint is not None:
        callbacks.append(FitCheckpoint(checkpoint, settings.checkpoint_every_n_steps))
    given = getattr(settings.trainer, "keywords", {})
    bar = settings.progress_bar and given.get("enable_progress_bar", True)
    if bar:
        callbacks.append(TaskProgressBar(f"task {task.id + 1}/{state.n_tasks} {settings.method}"))
    trainer = state.trainer(
        callbacks=callbacks,
        logger=[make(save_dir=str(run_dir), version=f"task{task.id:04d}") for make in settings.loggers] or False,
        default_root_dir=str(run_dir) if run_dir else None,
        enable_checkpointing=bool(best or checkpoint),
        enable_progress_bar=bar,
    )
    with _compat.seeded(derive_seed(settings.seed, "fit", task.id)):
        trainer.fit(
            state.module,
            datamodule=task_data(state, task),
            ckpt_path=str(checkpoint) if resuming else None,
            weights_only=True if resuming else None,
        )
    if not _compat.ended_normally(trainer):
        raise Stopped(f"stopped in task {task.id} at step {trainer.global_step}; the same command goes on")
    if best and best.best_model_path:
        state.module.load_state_dict(load_state(best.best_model_path)["state_dict"])
    state.optimizer = carry.state
    state.progress["steps"][str(task.id)] = trainer.global_step
    state.progress["flops"].setdefault(str(task.id), {})["fit"] = flops.total


def _best_checkpoint(state: SequenceState, task: Task) -> Any:
    if state.settings.select == "last":
        return None
    if task.validation is None or state.settings.run_dir is None:
        raise InputError("select='best' without validation data", "a validation split", "set validation_fraction=0.1")
    from lightning.pytorch.callbacks import ModelCheckpoint

    return ModelCheckpoint(
        dirpath=state.settings.run_dir / "checkpoints" / f"best-task{task.id:04d}",
        monitor=state.settings.monitor,
        mode=state.settings.monitor_mode,
    )


def consolidate(state: SequenceState, task: Task) -> None:
    """Let every callback take from the task what its method needs later."""
    loader_of = task_data(state, task)
    device = state.trainer().strategy.root_device
    state.module.to(device)
    flops = 0
    for callback in state.method_callbacks:
        loader = CountedLoader(loader_of.importance_dataloader())
        callback.consolidate(None, state.module, loader)
        flops += loader.flops
    state.progress["flops"].setdefault(str(task.id), {})["consolidate"] = flops


def evaluate(state: SequenceState, task: Task | None) -> None:
    """Fill the accuracy matrix's row of a task, in one pass over all tasks; before any training if task is None."""
    count = len(state.stream) if task is None or state.settings.evaluate_future else task.id + 1
    tests = [t.test for t in state.stream[:count]]
    row = _accuracies(state, tests)
    row += [None] * (len(state.stream) - len(row))
    if task is None:
        state.progress["random_init"] = row
        return
    state.progress["rows"][str(task.id)] = row
    validation = [t.validation for t in state.stream[:count]]
    if all(data is not None for data in validation):
        row = _accuracies(state, validation)
        state.progress["validation_rows"][str(task.id)] = row + [None] * (len(state.stream) - len(row))


def _accuracies(state: SequenceState, data: list[Any]) -> list[float | None]:
    settings = state.settings
    loaders = [CountedLoader(TaskLoader(d, settings.eval_batch_size, num_workers=settings.num_workers)) for d in data]
    trainer = state.trainer(enable_progress_bar=False, enable_checkpointing=False)
    trainer.test(state.module, dataloaders=loaders, verbose=False)
    state.progress["evaluation_flops"] += sum(loader.flops for loader in loaders)
    name = f"test_{settings.metric}"
    values: list[float | None] = []
    for i in range(len(loaders)):
        key = f"{name}/dataloader_idx_{i}" if len(loaders) > 1 else name
        if key not in trainer.callback_metrics:
            raise InputError(
                f"test_step logged {sorted(trainer.callback_metrics)}", f"a metric {key!r}", f"log {name!r} there"
            )
        values.append(float(trainer.callback_metrics[key]))
    return values
