"""Plain loops of the methods that store samples, keep an earlier model, or generate; the draws are a memory's own."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.callbacks._generator import ReplayGenerator
from lightning_cl.functional import project_gem
from lightning_cl.functional.batches import batch_size, concatenate, rebuild
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory import Memory, find_labels
from tests.parity.loops import Plain

SIZE, DRAWN, CLASSES = 9, 4, 4


class PlainReplay(Plain):
    """Stored samples behind the current ones, in one batch."""

    policy = "reservoir"

    def __init__(self, module: Any, name: str) -> None:
        super().__init__(module)
        self.memory, self.k = Memory(SIZE, self.policy, derive_seed(0, name)), 1

    def drawn(self, batch: Any) -> tuple[Any, dict[str, Tensor]]:
        slots = self.memory.draw(DRAWN)
        return rebuild(batch, self.memory.at(slots)), self.memory.extras(slots)

    def loss(self, batch: Any) -> Tensor:
        return super().loss(concatenate(batch, self.drawn(batch)[0]) if len(self.memory) else batch)

    def end(self, task: int, batches: list[Any]) -> None:
        for batch in batches:
            self.memory.add(batch)
        self.k += 1


class PlainSeparate(PlainReplay):
    def loss(self, batch: Any) -> Tensor:
        own = Plain.loss(self, batch)
        if not len(self.memory):
            return own
        return own / self.k + (1 - 1 / self.k) * Plain.loss(self, self.drawn(batch)[0])


class PlainERACE(PlainReplay):
    def loss(self, batch: Any) -> Tensor:
        logits, labels = self.module.outputs(batch)
        present = labels.unique()
        own = self.criterion(logits[:, present], torch.searchsorted(present, labels))
        return own + Plain.loss(self, self.drawn(batch)[0]) if len(self.memory) else own

    def after_batch(self, batch: Any) -> None:
        self.memory.add(batch)

    def end(self, task: int, batches: list[Any]) -> None: ...


class PlainDER(PlainReplay):
    def __init__(self, module: Any, name: str, alpha: float, beta: float) -> None:
        super().__init__(module, name)
        self.alpha, self.beta = alpha, beta

    def loss(self, batch: Any) -> Tensor:
        logits, labels = self.module.outputs(batch)
        total, self.seen = self.criterion(logits, labels), logits.detach().float()
        if not len(self.memory):
            return total
        other, extras = self.drawn(batch)
        again = wide(self.module.outputs(other)[0])
        total = total + self.alpha * F.mse_loss(again, extras["logits"].to(again.dtype))
        return total + self.beta * Plain.loss(self, self.drawn(batch)[0]) if self.beta else total

    def after_batch(self, batch: Any) -> None:
        extras = {"logits": self.seen, "widths": torch.full((batch_size(batch),), CLASSES)}
        self.memory.add(batch, find_labels(batch), extras)

    def end(self, task: int, batches: list[Any]) -> None: ...


class PlainLwF(Plain):
    teacher: Any = None

    def loss(self, batch: Any) -> Tensor:
        logits, labels = self.module.outputs(batch)
        own = self.criterion(logits, labels)
        if self.teacher is None:
            return own
        with torch.no_grad():
            target = (wide(self.teacher.outputs(batch)[0]) / 2).softmax(1)
        return own - (target * (wide(logits) / 2).log_softmax(1)).sum(1).mean()

    def end(self, task: int, batches: list[Any]) -> None:
        self.teacher = copy.deepcopy(self.module)


class PlainProjection(PlainReplay):
    """A-GEM and GEM: gradients of stored samples, a task's share of the memory each."""

    policy = "class_balanced"

    def __init__(self, module: Any, name: str) -> None:
        super().__init__(module, name)
        self.by_task, self.references = name == "gem", list[list[Tensor]]()

    def loss(self, batch: Any) -> Tensor:
        own = Plain.loss(self, batch)
        if len(self.memory) and not (self.by_task and self.references):
            slots = self.memory.draw(DRAWN) if not self.by_task else torch.arange(len(self.memory))
            loss = Plain.loss(self, rebuild(batch, self.memory.at(slots)))
            # in half precision a backward pass under autocast is another one
            with torch.autocast("cpu", enabled=False):
                found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            pairs = zip(found, self.parameters, strict=True)
            self.references.append([torch.zeros_like(p) if g is None else g for g, p in pairs])
        return own

    def before_step(self) -> None:
        if not self.references:
            return
        means = [torch.stack(parts).mean(0) for parts in zip(*self.references, strict=True)]
        gradient, reference = ([g.flatten() for g in part] for part in ([p.grad for p in self.parameters], means))
        g, r = torch.cat(gradient), torch.cat(reference)
        self.references = []
        new = g
        if self.by_task:
            new = project_gem([g], [[r]], 0.5)[0]
        elif g @ r < 0:
            new = g - (g @ r) / (r @ r) * r
        parts = new.split([p.numel() for p in self.parameters])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = part.view_as(p).clone()

    def end(self, task: int, batches: list[Any]) -> None:
        for batch in batches:
            self.memory.add(batch, torch.full((batch_size(batch),), task))


class PlainDGR(Plain):
    """The generator is the component's, with its own random numbers; losses and labels are written out."""

    teacher: Any = None

    def __init__(self, module: Any, **vae: Any) -> None:
        super().__init__(module)
        self.generator, self.k = ReplayGenerator(**vae, seed=derive_seed(0, "dgr")), 1

    def loss(self, batch: Any) -> Tensor:
        own = Plain.loss(self, batch)
        x, y = (batch["image"], batch["label"]) if isinstance(batch, dict) else batch
        weights = (1 / self.k, 1 - 1 / self.k)
        with torch.autocast("cpu", enabled=False):
            made = self.generator.sample(len(x), x.device) if self.teacher is not None else None
            self.generator.step(x.float(), made, weights)
            if made is None:
                return own
            made = made.to(x.dtype)
            labels = self.teacher.net(made).argmax(1).to(y.dtype)
        return weights[0] * own + weights[1] * self.criterion(self.module.net(made), labels)

    def end(self, task: int, batches: list[Any]) -> None:
        self.generator.keep(moments=False)
        self.teacher, self.k = copy.deepcopy(self.module), self.k + 1


def wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
