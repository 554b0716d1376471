"""Batches that passed ``training_step``, and the plain loop that a person would write on them."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl.functional import project_gem
from tests.callbacks.ewc_examples import data
from tests.callbacks.path_examples import Double
from tests.callbacks.replay_examples import fit

Batch = tuple[Tensor, Tensor]


class Recording(Double):
    """Keeps what every call of ``training_step`` was given, in one list for each batch of the loader."""

    def __init__(self, optimizer: str = "SGD", **options: Any) -> None:
        super().__init__(optimizer, **options)
        self.passed: list[list[Batch]] = []

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.passed.append([])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.passed[-1].append(tuple(batch))
        return super().training_step(batch, batch_idx)


def trained(callback: Any, *others: Callback, optimizer: str = "SGD", tasks: int = 3, epochs: int = 2,
            module: Any = None, **options: Any) -> Recording:  # fmt: skip
    """Some tasks, a Trainer for each."""
    module = module or Recording(optimizer)
    callbacks = [callback] if callback is not None else []
    for task in range(tasks):
        fit(module, data(task, dtype=module.dtype), *callbacks, *others, max_epochs=epochs, **options)
    return module


def agem(gradient: Tensor, references: list[Tensor]) -> Tensor:
    reference = references[0]
    dot = gradient @ reference
    return gradient - dot / (reference @ reference) * reference if dot < 0 else gradient


def gem(margin: float) -> Callable[[Tensor, list[Tensor]], Tensor]:
    return lambda gradient, references: project_gem([gradient], [[r] for r in references], margin)[0]


def plain_loop(passed: list[list[Batch]], project: Callable[[Tensor, list[Tensor]], Tensor], *, optimizer: str = "SGD",
               accumulate: int = 1, clip: float | None = None, steps_per_task: int = 8) -> Tensor:  # fmt: skip
    """Weights after the recorded batches; the optimizer is new after ``steps_per_task`` optimizer steps."""
    module = Double(optimizer)
    parameters = list(module.parameters())

    def gradient_of(batches: list[Batch]) -> Tensor:
        loss = sum(len(y) * nn.functional.cross_entropy(module.net(x), y) for x, y in batches)
        return nn.utils.parameters_to_vector(torch.autograd.grad(loss / sum(len(y) for _, y in batches), parameters))

    for step in range(len(passed) // accumulate):
        if step % steps_per_task == 0:
            made = module.optimizer_of(parameters)
        group = passed[step * accumulate : (step + 1) * accumulate]
        gradient = gradient_of([calls[0] for calls in group])
        drawn = [calls[1:] for calls in group if len(calls) > 1]
        references = [gradient_of([calls[k] for calls in drawn]) for k in range(len(drawn[0]) if drawn else 0)]
        if references:
            gradient = project(gradient, references)
        for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        made.step()
    return module.weights
