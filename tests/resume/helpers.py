"""Small runs that can be killed, and compared to the bit."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_cl import EWC, FineTuningModule, Replay
from lightning_cl._compat import seeded
from lightning_cl.files import load_state
from lightning_cl.streams import Stream, build_stream
from tests.streams.helpers import JitterEach, classes


class Killed(BaseException):
    """Passes every ``except Exception``."""


class Backbone(nn.Sequential):
    """With dropout and BatchNorm, so that global random numbers and buffers count."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3))


class Recorder(Callback):
    """What happens in a fit, one line each; and the kill, at one of these lines."""

    def __init__(self, kill_at: tuple[str, int] | None = None) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.kill_at = kill_at

    def _add(self, trainer: Trainer, name: str, *values: Any) -> None:
        if self.kill_at == (name, trainer.global_step):
            raise Killed(name)
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        self.events.append((name, trainer.current_epoch, trainer.global_step, lr, *values))

    def on_train_epoch_start(self, trainer: Trainer, module: Any) -> None:
        self._add(trainer, "epoch start")

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self._add(trainer, "batch start", batch_idx, float(batch[0].double().sum()))

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._add(trainer, "batch end", batch_idx, float(outputs["loss"]))

    def on_validation_start(self, trainer: Trainer, module: Any) -> None:
        self._add(trainer, "validation start")

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self._add(trainer, "validation end", float(trainer.callback_metrics["val_loss"]))

    def on_train_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self._add(trainer, "epoch end")

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        self._add(trainer, "train end")


def module(*, weights: int = 3, **options: Any) -> FineTuningModule:
    """The same at every call with the same ``weights``."""
    options.setdefault("optimizer", partial(torch.optim.AdamW, lr=0.02))
    with seeded(weights):
        return FineTuningModule(Backbone(), input_shape=(1, 4, 4), **options)


def stream(n_classes: int = 4, validation: float = 0.0, per_class: int = 10, **options: Any) -> Stream:
    """Class-incremental, two classes a task, with a random augmentation."""
    return build_stream(
        classes(n_classes, per_class),
        classes_per_task=options.pop("classes_per_task", 2),
        n_tasks=options.pop("n_tasks", None),
        validation_fraction=validation,
        augment=JitterEach(),
        normalize=(40.0, 30.0),
        seed=5,
        **options,
    )


def trainer(**options: Any) -> partial:
    """``Trainer`` as a config gives it."""
    options.setdefault("max_epochs", 2)
    return partial(Trainer, accelerator="cpu", devices=1, enable_progress_bar=False, logger=False, **options)


def method(name: str) -> list[Callback]:
    """Callbacks of a method."""
    return {
        "naive": lambda: [],
        "ewc": lambda: [EWC(5.0)],
        "er": lambda: [Replay(12)],
        "ewc+er": lambda: [EWC(5.0, labels="mc", n_draws=2), Replay(12, mode="separate", policy="class_balanced")],
    }[name]()


def contents(run_dir: Path) -> dict[str, Any]:
    """All that a run folder's last boundary holds."""
    import json

    saved = json.loads((run_dir / "sequence.json").read_text())
    stem = run_dir / "checkpoints" / saved["checkpoint"]
    return {
        "checkpoint": saved["checkpoint"],
        "model": load_state(f"{stem}.model.ckpt"),
        "learner": load_state(f"{stem}.learner.ckpt"),
        "progress": {k: v for k, v in saved["progress"].items() if k not in ("seconds", "peak_rss")},
    }


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Paths of the entries that are not the same, bit for bit; whose the files of a memory are differs in every run."""
    if isinstance(one, dict) and isinstance(two, dict):
        keys = [f"{where}.{key} is in one only" for key in one.keys() ^ two.keys()]
        both = (one.keys() & two.keys()) - {"owner"}
        return keys + [d for key in both for d in differences(one[key], two[key], f"{where}.{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        if len(one) != len(two):
            return [f"{where}: {len(one)} and {len(two)} entries"]
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{where}.{i}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [f"{where}: tensors differ"]
    return [] if type(one) is type(two) and one == two else [f"{where}: {one!r} and {two!r}"]


def learn(run_dir: Path | None, name: str = "er", *, callbacks: Any = (), kill_at: Any = None, **options: Any) -> Any:
    """A short run of a method: (events, results), or (events, None) if it was killed."""
    from lightning_cl.sequence import run_sequence

    options = {"trainer": trainer(), "batch_size": 6, "progress_bar": False, "checkpoint_every_n_steps": 2, **options}
    recorder = Recorder(kill_at)
    tasks = options.pop("stream", None) or stream()
    learner = options.pop("module", None) or module()
    try:
        return recorder.events, run_sequence(
            learner, tasks, [*method(name), *callbacks, recorder], run_dir=run_dir, method=name, **options
        )
    except Killed:
        return recorder.events, None


def without_times(results: dict[str, Any]) -> dict[str, Any]:
    """Results that can be compared."""
    per_task = [{k: v for k, v in task.items() if k != "seconds"} for task in results["per_task"]]
    return {**results, "per_task": per_task, "peak_rss_bytes": None}
