"""Results files as runs write them, made up: digits, class-incremental, with the shapes of er, naive and joint."""

import json
from pathlib import Path

from lightning_cl.functional.seeding import generator

_LEARNED = {"er": 0.985, "ewc": 0.99, "naive": 0.992}
_KEPT = {"er": 0.96, "ewc": 0.35, "naive": 0.12}


def average(row):
    """Mean of what is known in a list."""
    known = [value for value in row if value is not None]
    return sum(known) / len(known)


def example_matrix(method="er", tasks=5, seed=0):
    """T x T; joint only has its last row."""
    import torch

    noise = 0.02 * torch.rand(tasks, tasks, generator=generator(seed, method))
    matrix = [[None] * tasks for _ in range(tasks)]
    for i in range(tasks):
        for j in range(i + 1):
            if method != "joint":
                matrix[i][j] = max(_LEARNED[method] * _KEPT[method] ** (i - j) - float(noise[i, j]), 0.0)
            elif i == tasks - 1:
                matrix[i][j] = 0.98 - float(noise[i, j])
    return matrix


def example_results(method="er", tasks=5, seed=0, references=False, validation=False, config=None, **changes):
    """A whole results.json; keyword arguments replace its entries."""
    matrix = example_matrix(method, tasks, seed)
    rows = [row[: i + 1] for i, row in enumerate(matrix)]
    diagonal = [matrix[j][j] for j in range(tasks)]
    best = [max(row[j] for row in matrix[j:-1]) for j in range(tasks - 1)] if method != "joint" else []
    drops = [best[j] - matrix[-1][j] for j in range(len(best))]
    names = [f"task {i}" for i in range(tasks)]
    results = {
        "schema": 1,
        "status": "finished",
        "stream": "split_digits",
        "scenario": "class_incremental",
        "method": method,
        "seed": seed,
        "class_order_seed": 0,
        "metric": {"name": "accuracy", "higher_is_better": True},
        "task_names": names,
        "n_test": [90 + i for i in range(tasks)],
        "accuracy_matrix": matrix,
        "validation_accuracy_matrix": example_matrix(method, tasks, seed + 100) if validation else None,
        "random_init_accuracy": None,
        "compute": {
            "stages": {str(i): {"fit": 4.1e9 * (1 + (method == "er")), "consolidate": 2.5e7} for i in range(tasks)},
            "total": tasks * (4.1e9 * (1 + (method == "er")) + 2.5e7),
            "evaluation": 3.1e8,
        },
        "bytes_kept": 180_224,
        "average_accuracy": average(rows[-1]),
        "average_incremental_accuracy": average([average(row) for row in rows]) if method != "joint" else None,
        "forgetting": average(drops) if drops else None,
        "backward_transfer": average([matrix[-1][j] - diagonal[j] for j in range(tasks - 1)]) if drops else None,
        "forward_transfer": None,
        "learning_accuracy": average(diagonal) if method != "joint" else None,
        "per_task": [
            {
                "task": i,
                "name": names[i],
                "classes": [str(2 * i), str(2 * i + 1)],
                "seconds": {"train": 2.0 + 0.4 * i + 0.1 * seed, "consolidate": 0.35, "evaluate": 0.12 * (i + 1)},
                "steps": 120,
            }
            for i in range(tasks)
        ],
        "trainable_parameters": 190_810,
        "method_state_bytes": {"replay": 131_072} if method == "er" else {},
        "peak_rss_bytes": 512 * 2**20,
        "versions": {"lightning_cl": "0.1.0", "torch": "2.15.0", "lightning": "2.6.6"},
        "config_hash": "8d1f0c55a3b2",
        "config": config
        or {
            "seed": seed,
            "stream": {"_target_": "lightning_cl.streams.digits", "n_tasks": tasks},
            "model": {"backbone": {"hidden": [400, 400]}, "lr": 0.001},
            "callbacks": {"replay": {"memory_size": 200}} if method == "er" else {},
        },
        "continual_evaluation": None,
        "reference_methods": {},
    }
    if references:
        results["reference_methods"] = {name: example_results(name, tasks, seed) for name in ("naive", "joint")}
    return {**results, **changes}


def continual_points(tasks=5, every=20, steps=120):
    """Evaluations while learning, with a dip after every task change and steps counted anew in every task."""
    return [
        {
            "step": step,
            "task": i,
            "accuracy": [
                None
                if j > i
                else (step / steps) ** 0.3
                if j == i
                else 0.95 - 0.5 * 2.718 ** (-step / 30) - 0.02 * (i - j)
                for j in range(tasks)
            ],
        }
        for i in range(tasks)
        for step in range(every, steps + 1, every)
    ]


def write_run(folder: Path, results) -> Path:
    """Write results.json into a new folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    return folder
