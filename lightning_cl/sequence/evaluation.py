"""Testing the module on every task, in one pass."""

import contextlib
import copy
from typing import Any

from lightning_cl._compat_fsdp2 import whole
from lightning_cl.callbacks._flops import CountedLoader
from lightning_cl.errors import InputError
from lightning_cl.finetuning._evaluation import EvaluationSteps
from lightning_cl.sequence.state import SequenceState
from lightning_cl.sequence.training import refuse_to_go_on
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.task import Task


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
