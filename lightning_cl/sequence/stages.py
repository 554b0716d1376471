"""The stages that every method has: fit and consolidate."""

import copy
from typing import Any

from lightning_cl.callbacks._best import BestWeights
from lightning_cl.callbacks._carry import CarryOptimizer
from lightning_cl.callbacks._continual_evaluation import ContinualEvaluation
from lightning_cl.callbacks._flops import CountedLoader
from lightning_cl.callbacks._own_data import OwnData
from lightning_cl.errors import InputError
from lightning_cl.sequence.fit_options import early_stopping, refuse_averaging_of_a_growing_head
from lightning_cl.sequence.state import SequenceState, Stage
from lightning_cl.sequence.training import train
from lightning_cl.streams.datamodule import TaskDataModule
from lightning_cl.streams.stream import merge_tasks
from lightning_cl.streams.task import Task


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
    found = [callback for callback in state.callbacks if isinstance(callback, OwnData) and not callback.off]
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


def _best_weights(state: SequenceState, task: Task) -> BestWeights | None:
    settings = state.settings
    if settings.select == "last":
        return None
    if task.validation is None:
        raise InputError("select='best' without validation data", "a validation split", "set validation_fraction=0.1")
    return BestWeights(settings.monitor, settings.monitor_mode)


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
