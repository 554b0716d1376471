"""A plain PyTorch loop of several tasks in float64, and the same with a callback on a Trainer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.01, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.1),
}


class Double(Net):
    """In float64, with any optimizer."""

    def __init__(self, optimizer: str = "SGD", **options: Any) -> None:
        super().__init__(**options)
        self.optimizer_of = OPTIMIZERS[optimizer]
        self.double()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer_of(self.parameters())


class Loop:
    """What a person would write: ``penalty()``, ``step()`` and ``end()`` are a method's own.

    ``own`` is the gradient of the task's loss, ``total`` that of loss and penalty, by autograd, before clipping.
    """

    def __init__(self, optimizer: str = "SGD", *, clip: float | None = None, accumulate: int = 1) -> None:
        self.module, self.clip, self.accumulate = Double(optimizer), clip, accumulate
        self.parameters = list(self.module.parameters())

    def penalty(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64)

    def step(self, before: list[Tensor], own: list[Tensor], total: list[Tensor]) -> None: ...

    def end(self, loader: Any) -> None: ...

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def learn(self, tasks: int, epochs: int) -> None:
        for task in range(tasks):
            optimizer = self.module.optimizer_of(self.parameters)
            for _ in range(epochs):
                batches = list(data(task, dtype=torch.float64))
                for i in range(0, len(batches), self.accumulate):
                    self._step(optimizer, batches[i : i + self.accumulate])
            self.end(data(task, dtype=torch.float64))

    def _step(self, optimizer: torch.optim.Optimizer, batches: list[Any]) -> None:
        loss = sum(nn.functional.cross_entropy(self.module.net(x), y) for x, y in batches) / self.accumulate
        own = list(torch.autograd.grad(loss, self.parameters, retain_graph=True))
        total = list(torch.autograd.grad(loss + self.penalty() + 0 * loss, self.parameters, allow_unused=True))
        for parameter, gradient in zip(self.parameters, total, strict=True):
            parameter.grad = gradient.clone()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        before = self.values()
        optimizer.step()
        self.step(before, own, total)


def lightning(callback: Any, optimizer: str = "SGD", *, tasks: int = 3, epochs: int = 2, module: Any = None,
              others: Sequence[Any] = (), **options: Any) -> Net:  # fmt: skip
    """The same with a Trainer for each task."""
    module = module or Double(optimizer)
    for task in range(tasks):
        fit(module, data(task, dtype=module.dtype), callback, *others, max_epochs=epochs, **options)
    return module
