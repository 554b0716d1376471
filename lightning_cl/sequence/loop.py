"""``learn_task`` runs a task's stages; ``run_sequence`` loops over it."""

import contextlib
import json
import logging
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_cl import _compat, signals
from lightning_cl._compat_fsdp2 import has_shards
from lightning_cl.errors import InputError, Stopped
from lightning_cl.files import write_json
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.sequence import tuning
from lightning_cl.sequence.evaluation import evaluate
from lightning_cl.sequence.lock import RunLock
from lightning_cl.sequence.processes import connect, is_first, on_first, stop_if_asked
from lightning_cl.sequence.results import build_results, publish_model
from lightning_cl.sequence.settings import Settings
from lightning_cl.sequence.stages import stages_of
from lightning_cl.sequence.state import SequenceState
from lightning_cl.sequence.store import find_boundary, load_boundary, save_boundary
from lightning_cl.sequence.tokenizer_files import save_tokenizer
from lightning_cl.streams.task import Task

log = logging.getLogger(__name__)


def open_run(state: SequenceState) -> bool:
    """Go on where the state's run folder says, or begin there; True if there is something to go on from.

    Done by :func:`learn_task` at the first task, and never twice. Call it before to know which task is next::

        state = SequenceState(module, stream, callbacks, Settings(run_dir="run"))
        open_run(state)
        for task in stream[state.progress["task"] :]:
            learn_task(state, task)

    Raises:
        InputError: If the folder holds another run, no intact boundary, or another process works in it.
    """
    if state.opened:
        return False
    state.opened = True
    connect(state)
    for callback in state.callbacks:
        if state.settings.run_dir is not None and hasattr(callback, "belongs_to"):
            callback.belongs_to(state.settings.run_dir)
    saved = on_first(lambda: _look(state))
    if saved is not None:
        load_boundary(state, saved)
        tuning.apply(state)
        progress = state.progress
        log.info("going on with task %d, stage %d of %s", progress["task"], progress["stage"], state.settings.run_dir)
        return True
    if state.settings.evaluate_random_init:
        with _compat.seeded(derive_seed(state.settings.seed, "random init")):
            evaluate(state, None)
    tuning.search(state)
    tuning.apply(state)
    save_boundary(state)
    return False


def _look(state: SequenceState) -> dict[str, Any] | None:
    if state.settings.run_dir is not None:
        state.lock = RunLock(state.settings.run_dir)
    saved = find_boundary(state)
    save_tokenizer(state.settings.run_dir, state.stream)
    return saved


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
    open_run(state)
    if task.id != state.progress["task"]:
        raise InputError(
            f"task {task.id} when task {state.progress['task']} is next",
            "the tasks in order, from the first that is not done",
            "use run_sequence, or begin at open_run(state)",
        )
    stages = stages_of(state)
    if state.settings.training_data == "all" and task.id < state.n_tasks - 1:
        stages = []  # joint training has one fit, of all tasks at once
    kept = state.settings.trained_tasks is not None and task.id >= state.settings.trained_tasks
    stages = [] if kept else stages
    for position, stage in enumerate(stages):
        if position < state.progress["stage"]:
            continue
        stop_if_asked()
        with _running(state, task, stage.name):
            stage.run(state, task)
        state.progress["stage"] = position + 1
        save_boundary(state)
    if stages or kept:
        stop_if_asked()
        with _running(state, task, "evaluate"):
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
    give_up: Callable[[dict[str, Any]], str | None] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Learn every task of a stream, and return the results (also ``results.json`` in ``run_dir``).

    Killed at any moment and called again with the same arguments it goes on by itself, and on the CPU ends with the
    same weights, memory, importances and accuracies, bit for bit. A finished run returns its results at once.

    Args:
        module: A LightningModule; its ``test_step`` logs ``test_<metric>``.
        stream: A :class:`~lightning_cl.streams.Stream`; it may have grown since the last call.
        callbacks: The method, for example ``[EWC(1000.0), Replay(500)]``.
        on_task_end: Called with the results so far after every task, in the first process.
        give_up: Asked likewise after every task but the last; a sentence that says why ends the run there, with the
            status ``pruned``. Without it the same run goes on to its end.
        **settings: See :class:`~lightning_cl.sequence.settings.Settings`.

    SIGTERM, SIGUSR1 and SIGUSR2 stop it where nothing is lost: after the next step, or behind the stage.

    Returns:
        The results, as in ``results.json``.

    Raises:
        StopRequested: After such a signal, when all is saved.
        InputError: For bad input; tasks that are finished stay on disk, and ``results.json`` names the error until
            the run has gone on.
    """
    state = SequenceState(module, stream, list(callbacks), Settings(**settings))
    with signals.listening():
        try:
            return _run(state, on_task_end, give_up)
        finally:
            if state.lock is not None:
                state.lock.release()


def _run(
    state: SequenceState,
    on_task_end: Callable[[dict[str, Any]], None] | None,
    give_up: Callable[[dict[str, Any]], str | None] | None,
) -> dict[str, Any]:
    stream, run_dir = state.stream, state.settings.run_dir
    goes_on = open_run(state)
    if goes_on and give_up and (pruned := on_first(lambda: _pruned(run_dir))):
        return pruned
    first = state.progress["task"]
    for task in stream[first : state.n_tasks]:
        try:
            learn_task(state, task)
        except Exception as error:
            if not isinstance(error, Stopped):
                _record_failure(state, error)
            raise
        if task.id < state.n_tasks - 1:
            results = build_results(state, "running")
            _write(run_dir, results)
            if on_task_end and is_first() and state.progress["rows"]:
                on_task_end(results)
            why = on_first(lambda: give_up(results)) if give_up and state.progress["rows"] else None  # noqa: B023
            if why:
                results = build_results(state, "pruned", error=why)
                _write(run_dir, results)
                return results
    results = build_results(state, "finished")
    if run_dir is not None:
        on_first(lambda: publish_model(state, run_dir))
        _write(run_dir, results)
    if on_task_end and is_first() and first < state.n_tasks:
        on_task_end(results)
    return results


def _pruned(run_dir: Any) -> dict[str, Any] | None:
    """The results of a run that was given up."""
    try:
        results = json.loads((run_dir / "results.json").read_text())
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and results.get("status") == "pruned" else None


def _record_failure(state: SequenceState, error: Exception) -> None:
    """Say in ``results.json`` that and why the run failed, beside the tasks that are finished."""
    said = " ".join(str(error).split())
    said = said if isinstance(error, InputError) else f"{type(error).__name__}: {said}"
    if has_shards(state.module):
        state.joint_flops = state.joint_flops or 0  # the other processes may not come to measure it
    # what went wrong may be the disk
    with contextlib.suppress(OSError, InputError):
        _write(state.settings.run_dir, build_results(state, "failed", error=said))


def _write(run_dir: Any, results: dict[str, Any]) -> None:
    if run_dir is not None and is_first():
        write_json(run_dir / "results.json", results)


@contextmanager
def _running(state: SequenceState, task: Task, stage: str) -> Iterator[None]:
    """Around a stage: its own random numbers, so that they do not depend on what was run before it, and its time.

    Lightning turns Ctrl-C into a ``SystemExit`` and mutes it from then on; here it is a ``KeyboardInterrupt`` again.
    """
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        with state.timed(task.id, stage), _compat.seeded(derive_seed(state.settings.seed, stage, task.id)):
            yield
    except SystemExit as end:
        if not isinstance(end.__context__, KeyboardInterrupt):
            raise
        if handler is not None:
            signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from end
