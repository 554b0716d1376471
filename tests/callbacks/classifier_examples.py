"""Runs of methods that change the classifier, and the same training as a plain loop."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cl import FineTuningModule, run_sequence
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, stream, trainer

SGD = partial(torch.optim.SGD, lr=0.1)
NAMES = [f"c{i}" for i in range(6)]


class Batches(Callback):
    """Every batch that was trained on, for each task."""

    def __init__(self) -> None:
        self.of_task: list[list[tuple[Tensor, Tensor]]] = []

    def on_train_start(self, *args: Any) -> None:
        self.of_task.append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.of_task[-1].append((batch[0].clone(), batch[1].clone()))


def learner(**options: Any) -> FineTuningModule:
    return module(**{"optimizer": SGD, **options})


def learn(*callbacks: Any, model: Any = None, tasks: Any = None, **options: Any) -> tuple[FineTuningModule, Any]:
    """Three tasks of two classes; the module and the results."""
    model = model or learner()
    given: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 8, **options}
    results = run_sequence(model, tasks or stream(), list(callbacks), **given)
    return model, results


def plain_loop(
    start: FineTuningModule,
    batches: list[list[tuple[Tensor, Tensor]]],
    loss: Callable[..., Tensor],
    end: Callable[[Any, int], Any] = lambda model, task: None,
    lr: float = 0.1,
) -> FineTuningModule:
    """SGD on these batches: ``loss(model, teacher, x, y, old classes, classes so far)``, ``end`` after each task."""
    model, teacher = start, None
    for t, of_task in enumerate(batches):
        model.learn_classes(NAMES[: 2 * t + 2], [[2 * i, 2 * i + 1] for i in range(t + 1)])
        for x, y in of_task:
            value = loss(model, teacher, x, y, 2 * t, 2 * t + 2)
            gradients = torch.autograd.grad(value, list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= lr * gradient
        end(model, t)
        teacher = copy.deepcopy(model)
    return model


def logits_of(model: Any, x: Tensor) -> Tensor:
    return model.head(model.backbone(x))


def distances(a: Any, b: Any) -> dict[str, float]:
    return {name: float((p - q).abs().max()) for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True)}


def same_weights(a: Any, b: Any) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def reloaded_names(run: Path, x: Tensor) -> list[str]:
    """What the model that a run has left predicts, built from its file alone."""
    model = FineTuningModule.load_from_checkpoint(run / "model.ckpt", weights_only=True)
    batches = trainer().predict(model, DataLoader(x, batch_size=50))  # type: ignore[arg-type]
    assert batches is not None
    return [name for batch in batches for name in batch]


def inputs_to_test() -> tuple[Tensor, Tensor]:
    data = blobs().test
    return data.batch(torch.arange(len(data)))[:2]  # type: ignore[return-value]
