"""Small streams and loaders that can be learnt, for the tests of the module, the methods and the results."""

import functools
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl.finetuning import MLP, FineTuningModule
from lightning_cl.streams import Classification, Stream, TensorData, class_incremental

FEW_EPOCHS = functools.partial(Trainer, max_epochs=2, accelerator="cpu", enable_progress_bar=False)


def blobs(n_classes: int = 6, per_class: int = 20, width: int = 8) -> Classification:
    """Gaussian clouds around class centres; names ``"c0"``, ``"c1"``, ..."""
    generator = torch.Generator().manual_seed(3)
    centres = 2 * torch.randn(n_classes, width, generator=generator)
    y = torch.arange(n_classes * per_class) % n_classes
    parts = [
        TensorData(centres[y] + torch.randn(len(y), width, generator=generator), y, first_id=first)
        for first in (0, len(y))
    ]
    return Classification(*parts, [f"c{i}" for i in range(n_classes)])


def stream(builder: Any = class_incremental, n_tasks: int = 3, **options: Any) -> Stream:
    return builder(blobs(), n_tasks, **options)


def module(**options: Any) -> FineTuningModule:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FineTuningModule(options.pop("backbone", None) or MLP((8,), hidden=(16,)), input_shape=(8,), **options)


def plain_loader(shuffle: bool = False) -> DataLoader:
    """A loader that knows nothing of streams."""
    data = blobs().train
    return DataLoader(TensorDataset(*data.batch(torch.arange(len(data)))[:2]), batch_size=30, shuffle=shuffle)


def trainer(**options: Any) -> Trainer:
    defaults: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    return FEW_EPOCHS(**{**defaults, **options})
