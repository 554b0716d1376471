"""``results.json``: everything that was measured, derived from the accuracy matrix and the progress."""

import importlib.metadata
from pathlib import Path
from typing import Any

from lightning_cl import functional as F
from lightning_cl._sharded_tensors import whole_tensor
from lightning_cl.files import atomic_write
from lightning_cl.sequence.compute import joint_flops
from lightning_cl.sequence.identity import config_hash
from lightning_cl.sequence.state import SequenceState

PACKAGES = ("lightning_cl", "torch", "lightning", "torchmetrics", "torchvision", "hydra-core")


def build_results(state: SequenceState, status: str, error: str | None = None) -> dict[str, Any]:
    """The results so far (schema 1); values that cannot be known (yet) are None.

    Metrics over the accuracy matrix are of the tasks learnt so far. With ``higher_is_better=False`` the differences
    (forgetting, backward and forward transfer) change their sign: forgetting > 0 always means that it became worse.

    Args:
        state: The sequence.
        status: ``running``, ``finished``, ``failed``, or ``pruned`` (a sweep gave the run up).
        error: Why it failed or was given up, in one line.
    """
    progress, settings, stream = state.progress, state.settings, state.stream
    matrix = _matrix(progress["rows"], len(stream))
    learnt = max((int(task) + 1 for task in progress["rows"]), default=1)
    known = [row[:learnt] for row in matrix[:learnt]]
    random_init = progress["random_init"][:learnt] if progress["random_init"] else None
    sign = 1 if settings.higher_is_better else -1
    validation = progress["validation_rows"]
    stages = {task: {stage: int(n) for stage, n in row.items()} for task, row in progress["flops"].items()}
    return {
        "schema": 1,
        "status": status,
        "error": error,
        "stream": stream.name,
        "scenario": stream.scenario,
        "method": settings.method,
        "seed": settings.seed,
        "class_order_seed": settings.config.get("class_order_seed"),
        "metric": {"name": settings.metric, "higher_is_better": settings.higher_is_better},
        "task_names": [task.name for task in stream],
        "n_test": [len(task.test) for task in stream],
        "accuracy_matrix": matrix,
        "validation_accuracy_matrix": _matrix(validation, len(stream)) if validation else None,
        "other_metrics": _others(progress.get("other_rows", {}), len(stream), learnt),
        "random_init_accuracy": progress["random_init"],
        "compute": {
            "stages": stages,
            "total": sum(sum(row.values()) for row in stages.values()),
            "evaluation": progress["evaluation_flops"],
            "joint": joint_flops(state),
            "budget": settings.budget,
        },
        "bytes_kept": _bytes_kept(state),
        "average_accuracy": _number(F.average_accuracy(known)),
        "average_incremental_accuracy": _number(F.average_incremental_accuracy(known)),
        "forgetting": _number(F.forgetting(_times(sign, known))),
        "backward_transfer": _number(F.backward_transfer(_times(sign, known))),
        "forward_transfer": _number(F.forward_transfer(known, random_init) * sign),
        "learning_accuracy": _number(F.learning_accuracy(known)),
        "continual_evaluation": progress["continual"] or None,
        "min_accuracy": _min_accuracy(progress["continual"]),
        "per_task": [_per_task(state, task) for task in stream],
        "trainable_parameters": _trainable(state),
        "method_state_bytes": {callback.name: callback.nbytes for callback in state.method_callbacks},
        "tuned": progress.get("tuned"),
        "interpolation": progress.get("interpolation"),
        "importance": _importance(state) if status == "finished" else None,
        "peak_rss_bytes": progress["peak_rss"],
        "versions": {name: _version(name) for name in PACKAGES},
        "config_hash": config_hash(settings.config),
        "config": settings.config,
    }


def publish_model(state: SequenceState, run_dir: Path) -> None:
    """Put the model alone, without memory or importances, at ``model.ckpt``."""
    source = run_dir / "checkpoints" / f"{state.boundary}.model.ckpt"
    if source.is_file():
        atomic_write(run_dir / "model.ckpt", lambda file: file.write(source.read_bytes()))


def _matrix(rows: dict[str, Any], n: int) -> list[list[float | None]]:
    return [list(rows.get(str(i), [])) + [None] * (n - len(rows.get(str(i), []))) for i in range(n)]


def _others(rows: dict[str, Any], n: int, learnt: int) -> dict[str, Any] | None:
    """The matrix of every other metric that was logged for each task, and the mean of its last row."""
    matrices = {name: _matrix(of_tasks, n) for name, of_tasks in rows.items()}
    return {
        name: {"matrix": matrix, "average": _number(F.average_accuracy([row[:learnt] for row in matrix[:learnt]]))}
        for name, matrix in matrices.items()
    } or None


def _per_task(state: SequenceState, task: Any) -> dict[str, Any]:
    seconds = state.progress["seconds"].get(str(task.id), {})
    names = {"fit": "train"}
    return {
        "task": task.id,
        "name": task.name,
        "classes": list(task.classes),
        "seconds": {
            **dict.fromkeys(("train", "consolidate", "evaluate")),
            **{names.get(stage, stage): value for stage, value in seconds.items()},
        },
        "steps": state.progress["steps"].get(str(task.id), 0),
    }


def _trainable(state: SequenceState) -> int:
    """Parameters that were trained in the end; a part that is never thawed does not count."""
    with state.as_fitted():
        return sum(p.numel() for p in state.module.parameters() if p.requires_grad)


def _importance(state: SequenceState) -> dict[str, Any] | None:
    """For each callback with a quadratic penalty, what its importance looks like in the end; None without one."""
    held = {callback.name: getattr(callback, "importance", None) for callback in state.method_callbacks}
    found = {
        name: F.summarize_importance({key: whole_tensor(part) for key, part in value.items()})
        for name, value in held.items()
        if isinstance(value, dict) and value
    }
    return found or None


def _bytes_kept(state: SequenceState) -> int | None:
    """Size of the newest boundary checkpoint: all that is needed to go on."""
    if state.settings.run_dir is None:
        return None
    files = (state.settings.run_dir / "checkpoints").glob(f"{state.boundary}.*.ckpt")
    return sum(file.stat().st_size for file in files) or None


def _min_accuracy(rows: list[dict[str, Any]]) -> float | None:
    if not rows:
        return None
    width = max(len(row["accuracy"]) for row in rows)
    padded = [row["accuracy"] + [None] * (width - len(row["accuracy"])) for row in rows]
    return _number(F.min_accuracy([row["task"] for row in rows], padded))


def _times(sign: int, matrix: list[list[float | None]]) -> list[list[float | None]]:
    return [[value if value is None else sign * value for value in row] for row in matrix]


def _number(value: float) -> float | None:
    return float(value) if value == value else None


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
