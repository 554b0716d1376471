"""Modules and batches for generative replay; nothing in them is ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import DGR

SMALL: dict[str, Any] = {"hidden": (16,), "latent": 3, "lr": 0.01}


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


def as_tuple(x: Tensor, y: Tensor, t: int) -> Any:
    return x, y


def as_triple(x: Tensor, y: Tensor, t: int) -> Any:
    return x, y, torch.full_like(y, t)


def as_dict(x: Tensor, y: Tensor, t: int) -> Any:
    return {"image": x, "label": y, "split": "train"}


def as_named_tuple(x: Tensor, y: Tensor, t: int) -> Any:
    return Pair(x, y)


def read(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    if isinstance(batch, dict):
        return batch["image"], batch["label"], None
    return batch[0], batch[1], batch[2] if len(batch) == 3 else None


class Net(LightningModule):
    """Six classes; with task ids, two of them for each task. Remembers its batches, and the outputs of ``forward``."""

    def __init__(self, *, dropout: float = 0.0, optimizer: str = "Adam", lr: float = 0.02) -> None:
        super().__init__()
        self.kind, self.lr = optimizer, lr
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 6))
        self.batches: list[Any] = []

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        logits = self.net(x)
        if task is None:
            return logits
        return logits.masked_fill(torch.arange(6) // 2 != task[:, None], -1e9)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        x, y, task = read(batch)
        loss = nn.functional.cross_entropy(self(x, task), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.kind)(self.parameters(), lr=self.lr)

    @property
    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])


def data(task: int, structure: Callable[..., Any] = as_tuple, n: int = 24, batch_size: int = 6) -> DataLoader:
    """Two classes a task, inputs (2, 2) in [0, 1]."""
    generator = torch.Generator().manual_seed(task)
    y = torch.arange(n) % 2 + 2 * task
    x = (torch.rand(n, 2, 2, generator=generator) + nn.functional.one_hot(y % 4, 4).view(-1, 2, 2)) / 2

    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        return structure(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]), task)

    return DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True, collate_fn=collate)


def dgr(**options: Any) -> DGR:
    return DGR(**{**SMALL, **options})
