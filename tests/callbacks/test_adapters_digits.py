"""Adapters on a model that has learnt the digits 0 to 4: on 5 to 9 better than frozen, with a part of its weights."""

import copy
from functools import cache, partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_cl import Adapters, FineTuningModule, FreezingSchedule, run_sequence
from lightning_cl.finetuning import MLP, adapter_counts
from lightning_cl.streams import Classification, TensorData, class_incremental, digits

pytest.importorskip("peft")

METHODS: dict[str, Any] = {
    "frozen": lambda: [FreezingSchedule(until_epoch=None)],
    "lora": lambda: [Adapters("lora", rank=4)],
    "ia3": lambda: [Adapters("ia3")],
    "full": lambda: [],
}


def later_first() -> Classification:
    """The digits 5 to 9 before 0 to 4."""
    source = digits()

    def part(data: Any) -> TensorData:
        x, y, *_ = data.batch(torch.arange(len(data)))
        return TensorData(x, (y + 5) % 10)

    return Classification(part(source.train), part(source.test), [*"5678901234"])


@cache
def learnt(method: str, seed: int = 0) -> tuple[float, FineTuningModule]:
    """Accuracy on the digits 5 to 9 (``"source"``: 0 to 4)."""
    if method == "source":
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            backbone: Any = MLP((1, 8, 8), hidden=(100, 100))
    else:
        backbone = copy.deepcopy(learnt("source", seed)[1].backbone)
    module = FineTuningModule(backbone, input_shape=(1, 8, 8), optimizer=partial(torch.optim.Adam, lr=0.003))
    results = run_sequence(
        module,
        class_incremental(digits() if method == "source" else later_first(), 2),
        METHODS[method]() if method != "source" else [],
        trainer=partial(Trainer, max_epochs=15, accelerator="cpu"),
        limit_tasks=1,
        batch_size=32,
        seed=seed,
        progress_bar=False,
    )
    return results["average_accuracy"], module


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_better_than_frozen_with_a_part_of_the_weights(method: str):
    accuracy, module = learnt(method)
    assert accuracy > learnt("frozen")[0] + 0.005
    counts = adapter_counts(module)
    # IA3's ones are those of both hidden layers
    adapters = {"lora": 4 * ((64 + 100) + (100 + 100)), "ia3": 100 + 100}[method]
    assert counts == {
        "trained": adapters + 505,
        "head": 505,
        "total": 64 * 100 + 100 + 100 * 100 + 100 + adapters + 505,
    }
