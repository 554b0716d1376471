#!/usr/bin/env python3
"""Avalanche 0.6.0 and lightning_cl on the same work: accuracy and CPU time, side by side in one run, one thread.

    python -m venv avalanche && avalanche/bin/pip install avalanche-lib==0.6.0 quadprog    # an environment of its own
    python scripts/compare_avalanche.py --avalanche avalanche/bin/python --data-dir DIR --json avalanche.json

Class-incremental Split MNIST (0,1)(2,3)..., MLP 784-400-400-10, SGD 0.1, batch 128, one epoch a task, 500 samples kept,
evaluation on all tasks seen after each task. Its ``stock`` pipeline is SplitMNIST with the default metrics; its
``tensors`` pipeline serves ready tensors without loggers. CPU seconds are of learning and evaluating, without imports
and without reading the files. Runs take turns, so that both sides see the same machine.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

METHODS = ("naive", "ewc", "lwf", "er", "derpp", "gem", "a_gem")
SIDES = ("ours", "stock", "tensors")
PEER = Path(__file__).with_name("avalanche_peer.py")


def callbacks_of(method: str, seed: int) -> list[Any]:
    """Our counterpart of what avalanche_peer.py trains."""
    from lightning_cl import AGEM, DER, EWC, GEM, LwF, Replay

    # Avalanche replays a full batch beside a task's last one too; ours by default as many as are in that one
    return {
        "naive": lambda: [],
        "ewc": lambda: [EWC(2.0)],  # its penalty has no 1/2
        "lwf": lambda: [LwF(1.0, temperature=2.0)],
        "er": lambda: [Replay(500, policy="class_balanced", batch_size=128, seed=seed)],
        # Avalanche stores samples behind each task, with the logits of the model that has learnt it
        "derpp": lambda: [DER(500, 0.1, 0.5, policy="class_balanced", batch_size=128, fill="consolidate", seed=seed)],
        "gem": lambda: [GEM(500, margin=0.5, max_per_task=100)],
        "a_gem": lambda: [AGEM(500, max_per_task=100, batch_size=128, seed=seed)],
    }[method]()


def run_ours(method: str, seed: int, data_dir: str) -> None:
    """One run in this process; prints a line of JSON."""
    import torch
    from lightning.pytorch import Trainer

    from lightning_cl import FineTuningModule, run_sequence
    from lightning_cl._compat import seeded
    from lightning_cl.finetuning import MLP
    from lightning_cl.streams import build_stream, mnist

    torch.set_num_threads(1)
    stream = build_stream(
        dataset=mnist(data_dir),
        scenario="class_incremental",
        name="split_mnist",
        n_tasks=5,
        normalize=(0.1307, 0.3081),
        seed=seed,
    )
    with seeded(seed):
        module = FineTuningModule(
            MLP((1, 28, 28), (400, 400)),
            class_names=stream.class_names,
            head="fixed",
            active_classes="all",
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
            seed=seed,
        )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        results = run_sequence(
            module,
            stream,
            callbacks_of(method, seed),
            run_dir=folder,
            trainer=functools.partial(Trainer, max_epochs=1, accelerator="cpu"),
            progress_bar=False,
            seed=seed,
        )
    seconds = time.process_time() - start
    print(json.dumps({"accuracy": 100 * results["average_accuracy"], "seconds": seconds}))


def run(side: str, method: str, seed: int, arguments: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own."""
    if side == "ours":
        command = [sys.executable, __file__, "--run", method, str(seed), "--data-dir", arguments.data_dir]
    else:
        command = [arguments.avalanche, str(PEER), method, str(seed), arguments.data_dir, side]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    if side != "ours":
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: {side} {method} seed={seed}: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(found: dict[str, dict[str, list[dict[str, float]]]]) -> list[dict[str, Any]]:
    """One row for each method: means, standard deviations, and the ratio of the medians of CPU seconds."""
    rows = []
    for method, sides in found.items():
        row: dict[str, Any] = {"method": method}
        for side, runs in sides.items():
            values = [each["accuracy"] for each in runs]
            row[side] = {
                "accuracy": statistics.fmean(values),
                "standard_deviation": statistics.stdev(values) if len(values) > 1 else None,
                "seconds": statistics.median(each["seconds"] for each in runs),
                "values": values,
            }
        row["time_ratio"] = row["ours"]["seconds"] / row["stock"]["seconds"]
        row["time_ratio_tensors"] = row["ours"]["seconds"] / row["tensors"]["seconds"]
        rows.append(row)
    return rows


def main() -> None:
    """Compare, or do one run of ours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--avalanche", default="avalanche/bin/python", help="Python of the environment with Avalanche")
    parser.add_argument("--data-dir", default=os.environ.get("LIGHTNING_CL_DATA", "data"))
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", default=None)
    parser.add_argument("--run", nargs=2, metavar=("METHOD", "SEED"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_ours(arguments.run[0], int(arguments.run[1]), arguments.data_dir)
        return
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for method in arguments.methods:
        found[method] = {side: [] for side in SIDES}
        for seed in range(arguments.seeds):
            for side in SIDES:
                found[method][side].append(run(side, method, seed, arguments))
        row = table({method: found[method]})[0]
        print(
            f"{method:<6} accuracy {row['ours']['accuracy']:.2f} (Avalanche {row['stock']['accuracy']:.2f}, tensors "
            f"{row['tensors']['accuracy']:.2f}); CPU s {row['ours']['seconds']:.1f} (Avalanche "
            f"{row['stock']['seconds']:.1f}, tensors {row['tensors']['seconds']:.1f}); ratio {row['time_ratio']:.2f}",
            flush=True,
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(table(found), indent=1))


if __name__ == "__main__":
    main()
