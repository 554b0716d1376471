#!/usr/bin/env python3
"""Measure what the library costs, as ratios on the same work in one run, one thread, CPU time.

    python scripts/benchmark.py end_to_end --json end_to_end.json   # needs MNIST: --data-dir or $LIGHTNING_CL_DATA
    python scripts/benchmark.py ewc --json ewc.json                 # the penalty in each training step
    python scripts/benchmark.py importance --json importance.json   # the Fisher and the penalty; needs transformers
    python scripts/benchmark.py freezing --json freezing.json       # a step while a part is frozen
    python scripts/benchmark.py replay --json replay.json           # the memory in each step; needs 4 GB of RAM

Writes a list of {"name", "ours", "reference", "ratio", "unit", "reference_is"}.
"""

import argparse
import contextlib
import functools
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from benchmark_freezing import freezing
from benchmark_importance import importance
from benchmark_replay import replay
from benchmark_run import end_to_end
from torch import nn


def row(name: str, ours: list[float], reference: list[float], unit: str, reference_is: str) -> dict[str, Any]:
    """Medians of alternating measurements, and the median of their ratios pair by pair."""
    ratio = statistics.median(a / b for a, b in zip(ours, reference, strict=True))
    a, b = statistics.median(ours), statistics.median(reference)
    return {"name": name, "ours": a, "reference": b, "ratio": ratio, "unit": unit, "reference_is": reference_is}


def alternating(ours: Callable[[], float], reference: Callable[[], float], n: int) -> tuple[list[float], list[float]]:
    """n pairs of measurements, after one of each that does not count."""
    ours(), reference()
    pairs = [(ours(), reference()) for _ in range(n)]
    return [a for a, _ in pairs], [b for _, b in pairs]


# ewc -------------------------------------------------------------------------------------------------------------


def ewc(data_dir: str, repeats: int) -> list[dict[str, Any]]:
    """One training step with EWC, at tasks 2, 10 and 100, and without it, in the same Trainer."""
    import torchvision

    cases: dict[str, tuple[nn.Module, torch.Tensor, int]] = {
        "MLP 784-400-400-10, batch 128": (_mlp(), torch.rand(128, 784), 300),
        "ResNet-18, 32x32, batch 32": (torchvision.models.resnet18(num_classes=10), torch.rand(32, 3, 32, 32), 12),
    }
    rows = []
    for name, (network, x, steps) in cases.items():
        for task in (2, 10, 100):
            callback = _protected(network, task - 1)
            a, b = alternating(
                functools.partial(_step_seconds, network, x, steps, [callback]),
                functools.partial(_step_seconds, network, x, steps, []),
                repeats,
            )
            rows.append(row(f"EWC step at task {task}: {name}", a, b, "CPU s/step", "the Trainer without the callback"))
    return rows


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))


def _protected(network: nn.Module, tasks: int) -> Any:
    """An EWC callback that has consolidated this many tasks."""
    from lightning_cl import EWC
    from lightning_cl.functional import merge_offline

    callback = EWC(1e-3, consolidate="manual")
    for _ in range(tasks):
        parameters = {f"network.{name}": p.detach().clone() for name, p in network.named_parameters()}
        fisher = {name: torch.rand_like(p) * 1e-4 for name, p in parameters.items()}
        callback.importance, callback.anchor = merge_offline(callback.importance, callback.anchor, fisher, parameters)
    callback.n_tasks = tasks
    return callback


def _step_seconds(network: nn.Module, x: torch.Tensor, steps: int, callbacks: list[Any]) -> float:
    """CPU seconds per step of a fit, without its first steps."""
    from lightning.pytorch import Callback, LightningModule, Trainer

    warm = max(2, steps // 6)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

    class Clock(Callback):
        start = end = 0.0

        def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == warm:
                self.start = time.process_time()

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            self.end = time.process_time()

    clock = Clock()
    batches: Any = torch.utils.data.DataLoader([(x, torch.arange(len(x)) % 10)] * (warm + steps), batch_size=None)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, clock],
    )
    with mute():
        trainer.fit(Module(), batches)
    return (clock.end - clock.start) / steps


@contextlib.contextmanager
def mute() -> Any:
    """No progress bars and notices in the benchmark's own output; they are still drawn."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
        yield


def all_of_end_to_end(data_dir: str, repeats: int) -> list[dict[str, Any]]:
    """A fit of Split MNIST, and a whole run of it with a memory."""
    return end_to_end(data_dir, repeats, alternating, row, mute)


def all_of_importance(data_dir: str, repeats: int) -> list[dict[str, Any]]:
    """How exact importances are, what they cost, and what the penalty costs in each step."""
    return [*importance(repeats, alternating, row), *ewc(data_dir, repeats)]


def all_of_replay(data_dir: str, repeats: int) -> list[dict[str, Any]]:
    """What a memory, and methods with one, cost in each step."""
    return replay(repeats, alternating, row, _step_seconds)


def all_of_freezing(data_dir: str, repeats: int) -> list[dict[str, Any]]:
    """What a freezing schedule costs in each step."""
    return freezing(repeats, alternating, row, _step_seconds)


SUBJECTS: dict[str, Callable[[str, int], list[dict[str, Any]]]] = {
    "end_to_end": all_of_end_to_end,
    "ewc": ewc,
    "freezing": all_of_freezing,
    "importance": all_of_importance,
    "replay": all_of_replay,
}


def main() -> None:
    """Run one subject and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=sorted(SUBJECTS))
    parser.add_argument("--json", help="file for the rows")
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_CL_DATA", "data"))
    parser.add_argument("--repeats", type=int, default=7, help="alternating measurements; the median is reported")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    import lightning.pytorch  # noqa: F401 - it sets its loggers' levels

    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    rows = SUBJECTS[arguments.subject](arguments.data_dir, arguments.repeats)
    for entry in rows:
        print(f"{entry['name']}: {entry['ours']:.4g} against {entry['reference']:.4g} {entry['unit']}, ", end="")
        print(f"ratio {entry['ratio']:.3f} ({entry['reference_is']})")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
