"""What a memory, and methods with one, cost in a training step: the subject ``replay`` of benchmark.py."""

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Row = dict[str, Any]
BATCH = 128


def replay(
    repeats: int, alternating: Callable[..., Any], row: Callable[..., Row], fit_seconds: Callable[..., float]
) -> list[Row]:
    """All rows; ``fit_seconds(network, x, steps, callbacks)`` is CPU seconds per step of a fit."""
    return [*methods(repeats, alternating, row, fit_seconds), *memories(repeats, alternating, row)]


# methods ----------------------------------------------------------------------------------------------------------


def methods(
    repeats: int, alternating: Callable[..., Any], row: Callable[..., Row], fit_seconds: Callable[..., float]
) -> list[Row]:
    """Steps with a memory of 10,000 samples, filled at each step, against the same Trainer on plain batches."""
    from lightning_cl import AGEM, DER, LwF, Replay

    network = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
    x, steps = torch.rand(BATCH, 784), 150
    cases: list[tuple[str, Any, int, float]] = [
        ("ER", Replay(10_000, fill="step"), 2, 1.10),
        ("DER++", DER(10_000, 0.5, 0.5), 3, 1.25),
        ("DER", DER(10_000, 0.5), 2, float("nan")),
        ("A-GEM", AGEM(10_000, policy="reservoir", fill="step"), 1, 2.3),
        ("LwF", LwF(), 1, float("nan")),
    ]
    rows = []
    for name, callback, batches, bar in cases:
        fit_seconds(network, x, 100, [callback])  # fills the memory, or takes the teacher
        ours = functools.partial(fit_seconds, network, x, steps, [callback])
        plain = functools.partial(fit_seconds, network, x.repeat(batches, 1), steps, [])
        a, b = alternating(ours, plain, repeats)
        text = f"a plain step of the same Trainer on {batches * BATCH} samples"
        rows.append(row(f"step: {name}, MLP 784-400-400-10, batch 128", a, b, "CPU s/step", text) | {"bar": bar})
    return rows


# the memory alone -------------------------------------------------------------------------------------------------


def memories(repeats: int, alternating: Callable[..., Any], row: Callable[..., Row]) -> list[Row]:
    """Insertion and sampling of a batch, against a step of the plain loop."""
    cases: list[tuple[str, int, str, torch.dtype, bool, float]] = [
        ("reservoir of 10,000", 10_000, "reservoir", torch.float32, False, 0.06),
        ("reservoir of 1,000,000", 1_000_000, "reservoir", torch.float32, False, 0.12),
        ("reservoir of 1,000,000, ids", 1_000_000, "reservoir", torch.uint8, False, float("nan")),
        ("reservoir of 100,000 on disk", 100_000, "reservoir", torch.float32, True, float("nan")),
    ]
    policies = ("class_balanced", "task_balanced", "ring", "gdumb", "loss_aware", "time_weighted")
    cases += [(f"{policy} of 10,000", 10_000, policy, torch.float32, False, float("nan")) for policy in policies]
    step = functools.partial(step_seconds, *network())
    rows = []
    for name, size, policy, dtype, on_disk, bar in cases:
        with tempfile.TemporaryDirectory() as folder:
            options = {"storage": "disk", "path": folder} if on_disk else {}
            memory = filled(size, policy, dtype, ids="ids" in name, **options)
            a, b = alternating(functools.partial(memory_seconds, memory, dtype, "ids" in name), step, repeats)
        text = "one step of MLP 784-400-400-10, batch 128, SGD"
        rows.append(row(f"memory: add and sample, {name} (1x28x28 {dtype})", a, b, "CPU s/step", text) | {"bar": bar})
    return rows


def images(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Random images of this dtype."""
    return torch.randint(0, 255, (n, 1, 28, 28), dtype=torch.uint8).to(dtype)


def offers(dtype: torch.dtype, ids: bool) -> dict[str, Any]:
    """One batch, and what is known of it."""
    batch: dict[str, Any] = {"x": images(BATCH, dtype), "y": torch.randint(0, 10, (BATCH,))}
    if ids:
        batch["id"] = torch.arange(BATCH)
    return {"batch": batch, "labels": batch["y"], "tasks": 0, "losses": torch.rand(BATCH)}


def filled(size: int, policy: str, dtype: torch.dtype, *, ids: bool, **options: Any) -> Any:
    """A memory that has seen twice what it holds."""
    from lightning_cl.memory import Memory

    memory = Memory(size, policy, **options)
    known = offers(dtype, ids)
    many = {name: value.repeat(8, *[1] * (value.dim() - 1)) for name, value in known["batch"].items()}
    for _ in range(-(-2 * size // len(many["y"]))):
        memory.add(many, many["y"], tasks=0, losses=torch.rand(len(many["y"])))
    return memory


def memory_seconds(memory: Any, dtype: torch.dtype, has_ids: bool, steps: int = 100) -> float:
    """CPU seconds for one insertion and one sample of a batch."""
    known = offers(dtype, has_ids)
    start = time.process_time()
    for _ in range(steps):
        memory.add(**known)
        memory.sample(BATCH)
    return (time.process_time() - start) / steps


def network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """The MLP and a batch."""
    layers = [nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)]
    return nn.Sequential(*layers), torch.rand(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))


def step_seconds(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int = 40) -> float:
    """CPU seconds of a step of the plain loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    start = time.process_time()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return (time.process_time() - start) / steps
