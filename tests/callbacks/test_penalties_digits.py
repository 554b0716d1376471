"""Every quadratic penalty that keeps earlier tasks forgets less than nothing does, on real digits."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch import Trainer

from lightning_cl import FineTuningModule, run_sequence
from lightning_cl.finetuning import MLP
from lightning_cl.streams import digits, task_incremental
from tests.conf.test_configs import composed


@cache
def accuracy(method: str) -> float:
    """Mean over the five tasks after the last; Adam's rate is ten times the usual one, so that there is forgetting."""
    callbacks: list[Any] = [instantiate(section) for section in composed(f"method={method}").callbacks.values()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = MLP((1, 8, 8), hidden=(100, 100))
    optimizer = partial(torch.optim.Adam, lr=0.01)
    return run_sequence(
        FineTuningModule(backbone, input_shape=(1, 8, 8), head="multi", optimizer=optimizer),
        task_incremental(digits(), 5),
        callbacks,
        trainer=partial(Trainer, max_epochs=10, accelerator="cpu"),
        batch_size=128,
        progress_bar=False,
    )["average_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["si", "mas", "rwalk", "l2"])
def test_defaults_beat_naive(method: str):
    assert accuracy(method) > accuracy("naive") + 0.01
