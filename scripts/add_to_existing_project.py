"""One callback in an existing Lightning project: a plain module and DataModule, two data sets in turn.

The digits of scikit-learn, then the same digits upside down. Prints the accuracy on the first data set after each of
them; what is lost is the forgetting. Run it with ``python scripts/add_to_existing_project.py`` (15 s on one core).
"""
# ruff: noqa: D101, D102

import logging

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import EWC, Replay


class Digits(pl.LightningDataModule):
    def __init__(self, upside_down: bool) -> None:
        super().__init__()
        x, y = load_digits(return_X_y=True)
        images = torch.tensor(x, dtype=torch.float32).view(-1, 8, 8) / 16
        images = images.flip(1, 2) if upside_down else images
        labels = torch.tensor(y)
        self.train, self.test = TensorDataset(images[:1200], labels[:1200]), TensorDataset(images[1200:], labels[1200:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=32, shuffle=True)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.test, batch_size=600)


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def test_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def learn_both(*callbacks: pl.Callback) -> tuple[float, float, float]:
    """Accuracy on the first data set after the first and after the second, and on the second."""
    pl.seed_everything(0, verbose=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    module, first, second = Classifier(), Digits(upside_down=False), Digits(upside_down=True)
    accuracies = []
    for data, tests in ((first, [first]), (second, [first, second])):
        trainer = pl.Trainer(
            max_epochs=8, callbacks=list(callbacks), accelerator="cpu", enable_model_summary=False, **quiet
        )
        trainer.fit(module, datamodule=data)
        accuracies += [trainer.test(module, datamodule=test, verbose=False)[0]["accuracy"] for test in tests]
    return accuracies[0], accuracies[1], accuracies[2]


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, callbacks in {"without": [], "EWC": [EWC(100)], "Replay": [Replay(200)]}.items():
        before, after, new = learn_both(*callbacks)
        print(f"{name:8} first data set {before:.1%} -> {after:.1%}, forgetting {before - after:.1%}; second {new:.1%}")
