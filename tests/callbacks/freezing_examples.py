"""A module and data as people write them, for the tests of freezing."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

from lightning_cl.streams import TaskLoader, TensorData

Make = Callable[..., Any] | None


class Net(LightningModule):
    """Convolution, BatchNorm and dropout in a backbone; dropout before the head; twins of equal values."""

    def __init__(
        self, optimizer: Callable[..., Any] | None = None, scheduler: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.backbone = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 8)
            )
            self.drop = nn.Dropout(0.5)
            self.neck = nn.Linear(8, 8)
            self.head = nn.Linear(8, 3)
        self.neck.bias.data.zero_()
        self.optimizer, self.scheduler = optimizer, scheduler
        self.features: list[Tensor] = []
        self.train_everywhere = False

    def forward(self, x: Tensor) -> Tensor:
        features = self.backbone(x)
        self.features.append(features.detach().clone())
        return self.head(self.neck(self.drop(features)))

    def on_train_epoch_start(self) -> None:
        if self.train_everywhere:
            self.train()

    def on_train_batch_start(self, *args: Any) -> None:
        if self.train_everywhere:
            self.backbone.train()
            self.backbone[1].train()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("constant", 1.0, on_step=False, on_epoch=True)
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        assert not self.drop.training
        self.log("val", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        make = self.optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1))
        optimizer = make(self.parameters())
        if self.scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "monitor": "constant"}}


def images(n: int = 24) -> TensorData:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % 3
    return TensorData(torch.randn(n, 1, 6, 6, generator=generator) + y[:, None, None, None], y)


def loader() -> TaskLoader:
    """Four batches of six, in a new order every epoch, resumable anywhere."""
    return TaskLoader(images(), 6, shuffle=True)


def train(module: Any, *callbacks: Any, epochs: int = 3, resume: Any = None, val: bool = False, **options: Any) -> Any:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=options.pop("enable_checkpointing", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options,
    )
    trainer.fit(module, loader(), loader() if val else None, ckpt_path=resume, weights_only=True if resume else None)
    return trainer


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)
