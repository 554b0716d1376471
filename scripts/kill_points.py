"""Places at which ``kill_test.py`` kills a run: the run does it to itself with SIGKILL, or is killed from outside."""

import functools
import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Point:
    """Where to die.

    Args:
        kind: ``train`` (task, step), ``write`` (the n-th rename to a file whose name begins with ``file``),
            ``consolidate`` (the n-th callback's), ``evaluate`` (the n-th test batch), ``moment`` (after ``seconds``).
        n: Counted from 0 in the process; for ``train`` the step within the task.
        how: For ``write``: ``half`` of the file is written, ``before`` the rename, or ``after`` it. For
            ``consolidate``: at the ``start``, ``half`` way through the data, or at the ``end``.
        inside: A word in the run folder's path.
    """

    kind: str
    n: int = 0
    how: str = ""
    task: int = 0
    file: str = ""
    seconds: float = 0.0
    inside: str = ""


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def _put(owner: Any, **functions: Any) -> None:
    for name, function in functions.items():
        setattr(owner, name, function)


def install(point: Point | None, log: Path) -> None:
    """Write every optimizer step into ``log``, and die at the point. Changes this process for good."""
    _log_steps(log)
    # it guards against a power cut, not against a kill, and a busy disk is slow
    _put(os, fsync=lambda file: None)
    if point is not None:
        {
            "train": _in_training,
            "write": _in_a_write,
            "consolidate": _in_consolidation,
            "evaluate": _in_evaluation,
            "moment": lambda point: None,
        }[point.kind](point)


def _log_steps(log: Path) -> None:
    from lightning_cl.callbacks._guard import FiniteLoss

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b"start\n")
    original, last = FiniteLoss.on_train_batch_end, [0]

    def on_train_start(self: Any, trainer: Any, module: Any) -> None:
        last[0] = trainer.global_step

    def on_train_batch_end(self: Any, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step > last[0]:  # not while gradients are accumulated
            last[0] = trainer.global_step
            fit = f"{Path(trainer.default_root_dir).name} task {trainer.datamodule.task.id}"
            os.write(file, f"{fit} step {trainer.global_step}\n".encode())

    _put(FiniteLoss, on_train_start=on_train_start, on_train_batch_end=on_train_batch_end)


def _in_training(point: Point) -> None:
    from lightning_cl import FineTuningModule

    original = FineTuningModule.training_step

    @functools.wraps(original)  # Lightning looks at the signature
    def training_step(self: Any, batch: Any, batch_idx: int) -> Any:
        loss = original(self, batch, batch_idx)
        if self._trainer is None:  # a copy whose FLOPs are counted
            return loss
        here = (self.trainer.datamodule.task.id, self.trainer.global_step) == (point.task, point.n)
        if here and point.inside in str(self.trainer.default_root_dir):
            die()
        return loss

    _put(FineTuningModule, training_step=training_step)


def _in_a_write(point: Point) -> None:
    original, count = os.replace, Counter[str]()

    def replace(source: Any, target: Any) -> None:
        path = Path(target)
        if not path.name.startswith(point.file) or point.inside not in str(path):
            return original(source, target)
        count["writes"] += 1
        if count["writes"] <= point.n:
            return original(source, target)
        if point.how == "half":  # what a kill in the middle of writing leaves
            os.truncate(source, Path(source).stat().st_size // 2)
        elif point.how == "after":
            original(source, target)
        die()

    _put(os, replace=replace)


def _in_consolidation(point: Point) -> None:
    from lightning_cl.callbacks._method import MethodCallback
    from lightning_cl.functional._importance_engine import Engine
    from lightning_cl.memory import Memory

    count, original = Counter[str](), MethodCallback.consolidate

    def consolidate(self: Any, *args: Any) -> None:
        count["calls"] += 1
        count["batches"] = 0
        here = count["calls"] == point.n + 1
        if here and point.how == "start":
            die()
        original(self, *args)
        if here:  # a method that reads no data has no middle
            die()

    def counted(method: Any) -> Any:
        def add(self: Any, *args: Any, **kwargs: Any) -> Any:
            count["batches"] += 1
            if point.how == "half" and count["calls"] == point.n + 1 and count["batches"] == 2:
                die()
            return method(self, *args, **kwargs)

        return add

    _put(MethodCallback, consolidate=consolidate)
    for owner in (Memory, Engine):
        _put(owner, add=counted(owner.add))


def _in_evaluation(point: Point) -> None:
    from lightning_cl import FineTuningModule

    count, original = Counter[str](), FineTuningModule.test_step

    @functools.wraps(original)
    def test_step(self: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        original(self, batch, batch_idx, dataloader_idx)
        count["batches"] += 1
        if count["batches"] == point.n + 1:
            die()

    _put(FineTuningModule, test_step=test_step)
