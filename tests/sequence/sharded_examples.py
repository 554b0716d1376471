"""Runs of all four methods at once, on parameters that processes share."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_cl import EWC, L2SP, FineTuningModule, LwF, Replay, run_sequence
from lightning_cl._compat import seeded
from lightning_cl.streams import Stream, build_stream
from tests.callbacks.sharded_examples import strategy
from tests.resume.helpers import Backbone, Killed, stream
from tests.streams.helpers import classes


class Plain(nn.Sequential):
    """Nothing random in it, and nothing of the batch."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 9), nn.Tanh(), nn.Linear(9, 6), nn.Tanh())


def methods() -> list[Any]:
    return [EWC(5.0, variant="online"), L2SP(0.05), Replay(12, mode="separate"), LwF(1.0)]


def module(backbone: Any = Backbone, **options: Any) -> FineTuningModule:
    with seeded(3):
        return FineTuningModule(
            backbone(), input_shape=(1, 4, 4), optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9), **options
        )


def plain_stream() -> Stream:
    """No augmentation; an odd number of test samples a task."""
    return build_stream(classes(4, 11), classes_per_task=2, normalize=(40.0, 30.0), seed=5)


def trainer(processes: int, *, sharded: bool = True) -> partial:
    options: dict[str, Any] = {"strategy": strategy(processes)} if sharded else {}
    return partial(
        Trainer, accelerator="cpu", devices=processes, max_epochs=2, enable_progress_bar=False, logger=False, **options
    )


class KillInSecondTask(Callback):
    """Before its fourth step, if ``armed``."""

    def __init__(self, armed: bool) -> None:
        self.armed = armed

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.armed and trainer.global_step == 3 and len(module.class_names) == 4:
            raise Killed


def learn(run_dir: Any, learner: Any, *, kill: bool = False, tasks: Any = None, **options: Any) -> Any:
    """Results, or None if it was killed."""
    options = {"batch_size": 6, "progress_bar": False, "checkpoint_every_n_steps": 2, "method": "four", **options}
    try:
        return run_sequence(
            learner,
            tasks or stream(),
            [*methods(), KillInSecondTask(kill)],
            run_dir=run_dir,
            evaluate_future=True,
            **options,
        )
    except Killed:
        return None
