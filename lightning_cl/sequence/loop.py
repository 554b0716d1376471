"""``learn_task`` runs a task's stages; ``run_sequence`` loops over it."""

import logging
import resource
from collections.abc import Callable, Sequence
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import write_json
from lightning_cl.sequence.results import build_results, publish_model
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.stages import evaluate, stages_of
from lightning_cl.sequence.state import SequenceState
from lightning_cl.sequence.store import load_boundary, save_boundary
from lightning_cl.streams.task import Task

log = logging.getLogger(__name__)


def learn_task(state: SequenceState, task: Task) -> SequenceState:
    """Learn one task: its stages in order, then evaluation on every task seen.

    The state is written after every stage, so that a stage that is done is never done again. A state that has already
    done some of this task's stages (``state.progress``) goes on behind them.

    Args:
        state: What was learnt before; it is changed and returned.
        task: A task of ``state.stream``, the one at ``state.progress["task"]``.

    Raises:
        InputError: If another task is next, or for what the stages refuse.
        Stopped: If training was asked to stop.
    """
    if task.id != state.progress["task"]:
        raise InputError(
            f"task {task.id} when task {state.progress['task']} is next", "the tasks in order", "use run_sequence"
        )
    stages = stages_of(state)
    if state.settings.training_data == "all" and task.id < state.n_tasks - 1:
        stages = []  # joint training has one fit, of all tasks at once
    for position, stage in enumerate(stages):
        if position < state.progress["stage"]:
            continue
        with state.timed(task.id, stage.name):
            stage.run(state, task)
        state.progress["stage"] = position + 1
        save_boundary(state)
        _forget_fit(state, task)
    if stages:
        with state.timed(task.id, "evaluate"):
            evaluate(state, task)
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    state.progress.update(task=task.id + 1, stage=0, peak_rss=max(rss, state.progress["peak_rss"]))
    save_boundary(state)
    return state


def run_sequence(
    module: Any,
    stream: Any,
    callbacks: Sequence[Any] = (),
    *,
    on_task_end: Callable[[dict[str, Any]], None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Learn every task of a stream, and return the results (also ``results.json`` in ``run_dir``).

    Killed at any moment and called again with the same arguments it goes on by itself, and on the CPU ends with the
    same weights, memory, importances and accuracies, bit for bit. A finished run returns its results at once.

    Args:
        module: A LightningModule; its ``test_step`` logs ``test_<metric>``.
        stream: A :class:`~lightning_cl.streams.Stream`; it may have grown since the last call.
        callbacks: The method, for example ``[EWC(1000.0), Replay(500)]``.
        on_task_end: Called with the results so far after every task.
        **settings: See :class:`~lightning_cl.sequence.settings.Settings`.

    Returns:
        The results, as in ``results.json``.

    Raises:
        InputError: For bad input; tasks that are finished stay on disk.
    """
    state = SequenceState(module, stream, list(callbacks), Settings(**settings))
    run_dir = state.settings.run_dir
    if load_boundary(state):
        log.info("going on with task %d, stage %d of %s", state.progress["task"], state.progress["stage"], run_dir)
    elif state.settings.evaluate_random_init:
        _prepare_random_init(state)
    first = state.progress["task"]
    for task in stream[first : state.n_tasks]:
        learn_task(state, task)
        if task.id < state.n_tasks - 1:
            results = build_results(state, "running")
            _write(run_dir, results)
            if on_task_end and state.progress["rows"]:
                on_task_end(results)
    results = build_results(state, "finished")
    if run_dir is not None:
        publish_model(state, run_dir)
        _write(run_dir, results)
    if on_task_end and first < state.n_tasks:
        on_task_end(results)
    return results


def _prepare_random_init(state: SequenceState) -> None:
    """Evaluate before training, on a copy that knows all classes."""
    import copy

    module = state.module
    state.module = copy.deepcopy(module)
    if hasattr(state.module, "_learn_classes"):
        tasks = [t.class_indices for t in state.stream]
        state.module._learn_classes(state.stream.class_names, tasks)
    evaluate(state, None)
    state.module = module


def _write(run_dir: Any, results: dict[str, Any]) -> None:
    if run_dir is not None:
        write_json(run_dir / "results.json", results)


def _forget_fit(state: SequenceState, task: Task) -> None:
    """Remove the mid-fit checkpoint once the stage behind it is on disk."""
    checkpoint = state.fit_checkpoint(task.id)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
