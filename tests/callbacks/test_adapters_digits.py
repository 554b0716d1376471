"""Adapters on a model that has learnt digits 0 to 4 learn 5 to 9 better than a frozen one, with a part of its weights."""

from functools import cache, partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import EWC, Adapters, FineTuningModule, FreezingSchedule, Replay, run_sequence
from lightning_cl.finetuning import MLP, adapter_counts
from lightning_cl.finetuning.adapters import add_adapters
from lightning_cl.streams import class_incremental, digits, task_incremental

pytest.importorskip("peft")

METHODS: dict[str, Any] = {
    "frozen": lambda: [FreezingSchedule(until_epoch=None)],
    "lora": lambda: [Adapters("lora", rank=8)],
    "ia3": lambda: [Adapters("ia3")],
    "full": lambda: [],
    "lora + er": lambda: [Adapters("lora", rank=8), Replay(200)],
    "lora + ewc": lambda: [Adapters("lora", rank=8), EWC(1000.0)],
}


def source() -> FineTuningModule:
    return torch.load if False else learnt("full", 1)[0]  # type: ignore[return-value]
