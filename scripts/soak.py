#!/usr/bin/env python3
"""Many tasks in one run, and what grows with them: time of a step, memory of the process, size of a checkpoint.

    python scripts/soak.py --tasks 200 --json soak.json      # permuted digits, EWC and ER, some minutes on one core

A step is measured from the end of one batch to the end of the next, loader and replay included, in CPU time. The first
steps of each task are left out. Evaluation after task t is of t tasks, and is not part of a step. On a machine that is
shared, CPU time itself changes with what others do: before each task a fixed plain loop is measured too, and
`step_ratio_to_plain` is the ratio of steps measured in units of it.
"""

import argparse
import functools
import json
import logging
import os
import resource
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import EWC, FineTuningModule, Replay, run_sequence
from lightning_cl.finetuning import MLP
from lightning_cl.streams import build_stream, digits, permutation

EARLY, LATE, SETTLED = slice(5, 25), 20, 20
LEFT_OUT = 2  # steps at the start of a task


class StepTimes(Callback):
    """CPU seconds of each step, by fit, and of a step of a plain loop before it."""

    def __init__(self) -> None:
        self.fits: list[list[float]] = []
        self.plain: list[float] = []
        self.last = 0.0

    def on_train_start(self, *_: Any) -> None:
        """A fit begins."""
        self.fits.append([])
        self.plain.append(plain_step())
        self.last = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        """A step is over."""
        now = time.process_time()
        self.fits[-1].append(now - self.last)
        self.last = now

    def __deepcopy__(self, memo: Any) -> "StepTimes":
        """One record for all fits."""
        return self


def plain_step(n: int = 30) -> float:
    """Median CPU seconds of a step of a plain PyTorch loop, the same work every time."""
    random = torch.Generator().manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.rand(128, 64, generator=random), torch.randint(10, (128,), generator=random)
    spent = []
    for _ in range(n):
        start = time.process_time()
        for _ in range(3):  # about as long as a step
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        spent.append(time.process_time() - start)
    return statistics.median(spent)


def resident_bytes() -> int:
    """Memory of this process at this moment; the most so far where that is not known."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def soak(n_tasks: int, run_dir: str | Path, hidden: int = 100, batch_size: int = 64) -> dict[str, Any]:
    """Learn ``n_tasks`` permutations of digits with EWC and ER, and measure."""
    stream = build_stream(
        digits(), "domain_incremental", "permuted_digits", n_tasks, transform=permutation(n_tasks, seed=0)
    )
    module = FineTuningModule(
        functools.partial(MLP, hidden=[hidden]),
        input_shape=stream.input_shape,
        optimizer=functools.partial(torch.optim.SGD, lr=0.1),
    )
    times, memory, kept, seconds = StepTimes(), [], [], []
    start = time.process_time()

    def measure(results: dict[str, Any]) -> None:
        memory.append(resident_bytes())
        kept.append(results["bytes_kept"])
        seconds.append(time.process_time() - start)

    results = run_sequence(
        module,
        stream,
        [EWC(0.1, variant="online", n_samples=200), Replay(200, batch_size=batch_size)],
        run_dir=run_dir,
        method="ewc+er",
        trainer=functools.partial(Trainer, max_epochs=1, accelerator="cpu", callbacks=[times]),
        batch_size=batch_size,
        progress_bar=False,
        on_task_end=measure,
    )
    return summary(times, memory, kept, seconds) | {"average_accuracy": results["average_accuracy"]}


def summary(times: StepTimes, memory: list[int], kept: list[int], seconds: list[float]) -> dict[str, Any]:
    """The figures, from what was measured after each task."""
    fits = [fit[LEFT_OUT:] for fit in times.fits]
    relative = [[step / plain for step in fit] for fit, plain in zip(fits, times.plain, strict=True)]
    late = slice(max(EARLY.stop, len(fits) - LATE), None) if len(fits) > EARLY.stop else slice(len(fits) // 2, None)
    early = EARLY if len(fits) > EARLY.stop else slice(1, len(fits) // 2)
    first, last = (statistics.median(step for fit in fits[part] for step in fit) for part in (early, late))
    first_r, last_r = (statistics.median(step for fit in relative[part] for step in fit) for part in (early, late))
    settled = min(SETTLED, len(memory) // 2)
    return {
        "tasks": len(fits),
        "step_ms_early": first * 1e3,
        "step_ms_late": last * 1e3,
        "step_ratio": last / first,
        "step_ratio_to_plain": last_r / first_r,
        "memory_mb": [round(value / 2**20, 2) for value in memory],
        "memory_growth_mb_per_task": slope(memory[settled:]) / 2**20,
        "checkpoint_bytes": kept,
        "checkpoint_growth_bytes_per_task": slope(kept[settled:]),
        "step_ms": [round(statistics.median(fit) * 1e3, 4) for fit in fits],
        "plain_ms": [round(value * 1e3, 4) for value in times.plain],
        "cpu_seconds": seconds,
    }


def slope(values: list[int]) -> float:
    """Growth from one value to the next, by least squares."""
    return statistics.linear_regression(range(len(values)), values).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--run-dir", help="a run folder to keep; by default one that is removed")
    parser.add_argument("--json", help="where the figures go")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        found = soak(arguments.tasks, arguments.run_dir or folder)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if not isinstance(value, list)}, indent=1))


if __name__ == "__main__":
    main()
