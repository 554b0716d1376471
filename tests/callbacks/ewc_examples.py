"""A small project in float64 and the oracle of EWC: the sum of one autograd quadratic for each task."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """Cross-entropy of ``self(x)``; ``seed`` fixes the initial weights."""

    def __init__(self, lr: float = 0.02, *, manual: bool = False, optimizer: str = "SGD") -> None:
        super().__init__()
        self.lr, self.automatic_optimization, self.kind = lr, not manual, optimizer
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = nn.functional.cross_entropy(self(x), y)
        self.log("loss", loss)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return getattr(torch.optim, self.kind)(self.parameters(), lr=self.lr)

    @property
    def weights(self) -> Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters()])


def data(task: int, n: int = 24, dtype: torch.dtype = torch.float32, **options: Any) -> DataLoader:
    generator = torch.Generator().manual_seed(100 + task)
    y = torch.arange(n) % 3
    x = torch.randn(n, 4, generator=generator) + nn.functional.one_hot((y + task) % 4, 4)
    return DataLoader(TensorDataset(x.to(dtype), y), batch_size=options.pop("batch_size", 6), **options)


class Gradients(Callback):
    """What is in ``.grad`` before and after the callbacks between two of these, at every optimizer step."""

    def __init__(self) -> None:
        self.seen: list[list[Tensor]] = []
        self.at: list[list[Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([p.grad.detach().clone() for p in pl_module.parameters()])
        self.at.append([p.detach().clone() for p in pl_module.parameters()])


def quadratics(
    parameters: list[Tensor], tasks: list[tuple[list[Tensor], list[Tensor]]], lambda_: float
) -> list[Tensor]:
    """Gradient, by autograd in float64, of the sum over tasks of ``lambda/2 sum F (theta - anchor)^2``."""
    leaves = [p.double().requires_grad_() for p in parameters]
    value = sum(
        lambda_ / 2 * (f.double() * (p - a.double()) ** 2).sum()
        for fisher, anchor in tasks
        for p, f, a in zip(leaves, fisher, anchor, strict=True)
    )
    return list(torch.autograd.grad(value, leaves))
