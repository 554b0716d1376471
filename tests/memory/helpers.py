"""Streams of numbered samples, and memories of every kind."""

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.memory import Memory
from lightning_cl.memory.policies import POLICIES

NAMES = sorted(POLICIES)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def offer(memory: Memory, ids: Tensor, *, task: int = 0, classes: int = 4) -> None:
    """Samples whose every leaf says their number; class, feature and loss follow from it."""
    labels = ids * 7 % classes
    batch = {"x": ids[:, None].float().repeat(1, 3), "y": labels, "id": ids, "name": [f"n{i}" for i in ids.tolist()]}
    features = torch.stack([(ids * k % 11).float() - 4 for k in (1, 3, 5)], 1)
    losses = (ids % 5).float() + 0.5
    memory.add(batch, labels, {"twice": 2 * ids}, tasks=task, features=features, losses=losses)


def held(memory: Memory) -> list[int]:
    return memory.at(slice(0, len(memory)))["x"][:, 0].long().tolist()


def make(policy: str, size: int = 10, *, folder: Path | None = None, **options: Any) -> Memory:
    if policy == "time_weighted":
        options = {"policy_options": {"time_constant": 3 * size}, **options}
    if folder is not None:
        options |= {"storage": "disk", "path": folder}
    return Memory(size, policy, 3, **options)


def check(memory: Memory, deleted: set[int] = frozenset(), oldest: int = 0) -> None:  # type: ignore[assignment]
    """All that is stored beside a sample belongs to it, and nothing is there that should not be."""
    found = memory.at(slice(0, len(memory)))
    ids = found["x"][:, 0].long()
    assert len(set(ids.tolist())) == len(ids) <= memory.size
    assert torch.equal(found["x"], ids[:, None].float().repeat(1, 3))
    assert torch.equal(found["id"], ids)
    assert found["name"] == [f"n{i}" for i in ids.tolist()]
    assert torch.equal(memory.extras(slice(0, len(memory)))["twice"], 2 * ids)
    assert torch.equal(memory.labels, found["y"])
    assert not deleted & set(ids.tolist())
    assert all(i >= oldest for i in ids.tolist())
