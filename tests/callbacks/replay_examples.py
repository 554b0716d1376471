"""Modules, data and training loops as people write them; nothing in them is ours."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Pair(NamedTuple):
    x: Tensor
    y: Tensor
    weight: Tensor | None = None


def as_tuple(x: Tensor, y: Tensor) -> Any:
    return x, y


def as_dict(x: Tensor, y: Tensor) -> Any:
    return {"image": x, "meta": {"name": [f"sample {int(i)}" for i in x[:, 0]]}, "label": y, "split": "train"}


def as_named_tuple(x: Tensor, y: Tensor) -> Any:
    return Pair(x, y)


READ: dict[Callable[..., Any], Callable[[Any], tuple[Tensor, Tensor]]] = {
    as_tuple: lambda batch: (batch[0], batch[1]),
    as_dict: lambda batch: (batch["image"], batch["label"]),
    as_named_tuple: lambda batch: (batch.x, batch.y),
}


class Numbered(Dataset):
    """Samples whose first feature is their number, two classes per task; task t has numbers from 100 t."""

    def __init__(self, task: int, n: int = 24) -> None:
        generator = torch.Generator().manual_seed(task)
        self.y = torch.arange(n) % 2 + 2 * task
        self.x = torch.randn(n, 4, generator=generator) + self.y[:, None] % 2
        self.x[:, 0] = torch.arange(n) + 100 * task

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index], self.y[index]


def loader(task: int, structure: Callable[..., Any] = as_tuple, *, shuffle: bool = True, **options: Any) -> DataLoader:
    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        return structure(torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples]))

    return DataLoader(Numbered(task), batch_size=6, shuffle=shuffle, collate_fn=collate, **options)


class Classifier(LightningModule):
    def __init__(self, structure: Callable[..., Any] = as_tuple, lr: float = 0.05) -> None:
        super().__init__()
        self.read, self.lr = READ[structure], lr
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 6))
        self.seen: list[list[int]] = []
        self.batches: list[Any] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = self.read(batch)
        self.seen.append(x[:, 0].long().tolist())
        self.batches.append(batch)
        loss = nn.functional.cross_entropy(self.net(x[:, 1:]), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)

    @property
    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])


class Numbers(LightningDataModule):
    def __init__(self, task: int, structure: Callable[..., Any] = as_tuple) -> None:
        super().__init__()
        self.task_id, self.structure = task, structure

    def train_dataloader(self) -> DataLoader:
        return loader(self.task_id, self.structure)


def fit(module: Any, data: Any, *callbacks: Callback, ckpt_path: Any = None, **options: Any) -> Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(**({"accelerator": "cpu", "max_epochs": 2, "callbacks": list(callbacks)} | quiet | options))
    source = {"datamodule": data} if isinstance(data, LightningDataModule) else {"train_dataloaders": data}
    trainer.fit(module, **source, ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)
    return trainer


def same(a: Any, b: Any) -> bool:
    """Whether two states are equal to the last bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)
