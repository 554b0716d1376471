"""What a memory costs in a training step: the subject ``replay`` of benchmark.py."""

import functools
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Row = dict[str, Any]
BATCH = 128


def replay(repeats: int, alternating: Callable[..., Any], row: Callable[..., Row]) -> list[Row]:
    """All rows; what methods cost in a step comes behind what their memory costs."""
    return [*memories(repeats, alternating, row)]


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
