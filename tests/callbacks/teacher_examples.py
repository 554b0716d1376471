"""The methods with a memory and a teacher, small, and one step of each computed plainly."""

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl import EEIL, LUCIR, BalancedFineTuning, PODNet, Replay, run_sequence
from lightning_cl.streams import TaskDataModule
from tests.finetuning.examples import FEW_EPOCHS, module, stream, trainer

COSINE: dict[str, Any] = {"head_layer": "cosine", "head_options": {"proxies": 2, "imprint": True}}
METHODS: dict[str, Callable[..., list[Any]]] = {
    "lucir": lambda **options: [LUCIR(12, **options)],
    "podnet": lambda **options: [PODNet(12, **options)],
    "eeil": lambda **options: [EEIL(12, **options)],
}
WITHOUT: dict[str, dict[str, Any]] = {
    "lucir": {"lambda_base": 0, "margin_weight": 0, "fix_old_rows": False},
    "podnet": {"lambda_c": 0, "lambda_f": 0, "loss": "module"},
    "eeil": {"lambda_": 0},
}
# with the stage of balanced fine-tuning
STAGED: dict[str, Callable[[], list[Any]]] = {
    "er": lambda: [Replay(12), BalancedFineTuning(5)],
    "eeil": lambda: [EEIL(12), BalancedFineTuning(5)],
    "lucir, head": lambda: [LUCIR(12), BalancedFineTuning(5, tune="head")],
}


def er(method: str) -> Replay:
    """Plain replay that draws what the method draws."""
    return Replay(12, policy="class_balanced", name=method)


def learn(model: Any, *callbacks: Any, tasks: Any = None, **options: Any) -> dict[str, Any]:
    options = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10, **options}
    return run_sequence(model, stream() if tasks is None else tasks, callbacks, **options)


class Keep(Callback):
    """The first step: what it started from, what it was given, the gradient it made."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.weights = copy.deepcopy(pl_module.state_dict())
        self.batch = batch

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.gradient = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


def one_step(
    callback: Any, plain: Callable[..., Tensor], model: Any = None, tasks: Any = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of the second task's first step: the callback's, and those of ``plain(now, old, x, y)``."""
    model, tasks = model or module(**COSINE), tasks or stream()
    trainer(callbacks=[callback]).fit(model, datamodule=TaskDataModule(tasks[0], batch_size=10))
    old, keep = copy.deepcopy(model).eval(), Keep()
    trainer(callbacks=[callback, keep], max_steps=1).fit(model, datamodule=TaskDataModule(tasks[1], batch_size=10))
    now = copy.deepcopy(model)
    now.load_state_dict(keep.weights)
    x, y, *_ = keep.batch
    assert len(x) == 20
    assert set(y[10:].tolist()) == {0, 1}
    now.train()
    plain(now, old, x, y).backward()
    return keep.gradient, {n: p.grad for n, p in now.named_parameters() if p.grad is not None}


def unit(features: Tensor) -> Tensor:
    return features / features.norm(dim=1, keepdim=True)


def plain_lucir(now: Any, old: Any, x: Tensor, y: Tensor) -> Tensor:
    f, before = now.backbone(x), old.backbone(x).detach()
    s = now.head(f) / now.head.eta
    loss = nn.functional.cross_entropy(now.head(f), y)
    loss = loss + 5 * math.sqrt(2 / 2) * (1 - (unit(f) * unit(before)).sum(1)).mean()
    terms = [torch.relu(0.5 - s[i, y[i]] + s[i, c]) for i in range(len(y)) if y[i] < 2 for c in (2, 3)]
    return loss + torch.stack(terms).sum() / int((y < 2).sum())


def plain_podnet(now: Any, old: Any, x: Tensor, y: Tensor) -> Tensor:
    f, before = now.backbone(x), old.backbone(x).detach()
    s, eta = now.head(f) / now.head.eta, now.head.eta
    terms = [
        torch.relu(torch.logsumexp(eta * torch.stack([s[i, c] for c in range(4) if c != y[i]]), 0)
                   - eta * (s[i, y[i]] - 0.6)) for i in range(len(y))
    ]  # fmt: skip
    distances = []
    a, b = x, x
    for part, before_part in zip(*(list(m.backbone.layers) for m in (now, old)), strict=True):
        a, b = part(a), before_part(b)
        if isinstance(part, nn.Linear):
            distances.append((unit(a) - unit(b.detach())).norm(dim=1).mean())
    flat = (1 - (unit(f) * unit(before)).sum(1)).mean()
    return torch.cat(terms).mean() + math.sqrt(4 / 2) * (3 * torch.stack(distances).mean() + flat)


def plain_eeil(now: Any, old: Any, x: Tensor, y: Tensor) -> Tensor:
    z, before = now.head(now.backbone(x)), old.head(old.backbone(x)).detach()
    soft = -((before / 2).softmax(1) * (z[:, :2] / 2).log_softmax(1)).sum(1).mean()
    return nn.functional.cross_entropy(z, y) + soft


PLAIN = {"lucir": plain_lucir, "podnet": plain_podnet, "eeil": plain_eeil}
