"""Plain loops, without Lightning, of the methods that work in anybody's project; a class for each family."""

import copy
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.finetuning import add_adapters
from lightning_cl.finetuning.auto_freeze import auto_phases
from lightning_cl.finetuning.depth_groups import depth_groups
from lightning_cl.finetuning.recipes import recipe_phases
from lightning_cl.finetuning.selectors import select_parameters
from lightning_cl.functional.batches import batch_size, select
from lightning_cl.functional.kfac import kronecker_fisher
from lightning_cl.functional.kronecker_penalty import KroneckerPenalty
from lightning_cl.functional.seeding import derive_seed
from tests.parity.conditions import Condition

LR = 0.1


class Plain:
    """Training on one task after another; what a method adds is in the functions below ``loss``."""

    epochs = 1

    def __init__(self, module: Any) -> None:
        self.module, self.criterion = module, getattr(module, "criterion", F.cross_entropy)
        self.named = dict(module.named_parameters())
        self.parameters = list(self.named.values())

    def loss(self, batch: Any) -> Tensor:
        logits, labels = self.module.outputs(batch)
        return self.criterion(logits, labels)

    def begin(self, task: int) -> None: ...

    def begin_epoch(self, task: int, epoch: int) -> None: ...

    def after_batch(self, batch: Any) -> None: ...

    def before_step(self) -> None:
        """``.grad`` is the loss's alone."""

    def after_step(self, before: list[Tensor]) -> None: ...

    def end(self, task: int, batches: list[Any]) -> None: ...

    def values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    def zeros(self) -> list[Tensor]:
        return [torch.zeros_like(p) for p in self.parameters]

    def learn(self, condition: Condition, dtype: torch.dtype, tasks: int = 2) -> Tensor:
        for task in range(tasks):
            batches = self.module.data(task, dtype)
            optimizer = torch.optim.SGD(self.parameters, lr=LR)
            self.begin(task)
            for epoch in range(self.epochs):
                self.begin_epoch(task, epoch)
                for i in range(0, len(batches), condition.accumulate):
                    self._step(optimizer, batches[i : i + condition.accumulate], condition)
            self.end(task, batches)
        return torch.cat([p.detach().flatten() for p in self.module.parameters()])

    def _step(self, optimizer: torch.optim.Optimizer, group: Any, condition: Condition) -> None:
        half = condition.half
        for batch in group:
            with torch.autocast("cpu", half, cache_enabled=False) if half is not None else nullcontext():
                loss = self.loss(batch)
            (loss / condition.accumulate).backward()
            self.after_batch(batch)
        self.before_step()
        if condition.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, condition.clip)
        before = self.values()
        optimizer.step()
        self.after_step(before)
        optimizer.zero_grad()


class Quadratic(Plain):
    """``lambda/2 sum importance (theta - anchor)^2``, its gradient or its proximal step."""

    def __init__(self, module: Any, lambda_: float, proximal: bool = False) -> None:
        super().__init__(module)
        self.lambda_, self.proximal = lambda_, proximal
        self.importance, self.anchor = self.zeros(), self.values()

    def before_step(self) -> None:
        if not self.proximal:
            for p, omega, anchor in zip(self.parameters, self.importance, self.anchor, strict=True):
                p.grad += self.lambda_ * omega * (p.detach() - anchor)

    def after_step(self, before: list[Tensor]) -> None:
        if self.proximal:
            for p, omega, anchor in zip(self.parameters, self.importance, self.anchor, strict=True):
                s = LR * self.lambda_ * omega
                p.data = (p.detach() + s * anchor) / (1 + s)

    def samples(self, batches: list[Any]) -> list[Any]:
        return [select(batch, slice(i, i + 1)) for batch in batches for i in range(batch_size(batch))]

    def fisher(self, batches: list[Any]) -> list[Tensor]:
        """The expectation under the model of the squared gradient, one sample and class at a time."""
        total, samples = self.zeros(), self.samples(batches)
        for sample in samples:
            log_p = self.module.outputs(sample)[0].log_softmax(1)[0]
            for value in log_p:
                found = torch.autograd.grad(value, self.parameters, retain_graph=True, allow_unused=True)
                for sum_, g in zip(total, found, strict=True):
                    if g is not None:
                        sum_ += value.detach().exp() * g**2
        return [value / len(samples) for value in total]

    def new(self, batches: list[Any]) -> list[Tensor]:
        raise NotImplementedError

    def end(self, task: int, batches: list[Any]) -> None:
        new = self.new(batches)
        self.importance = [old + value for old, value in zip(self.importance, new, strict=True)]
        self.anchor = self.values()


class PlainEWC(Quadratic):
    """Two tasks have one penalty: offline and online are the same."""

    def new(self, batches: list[Any]) -> list[Tensor]:
        return self.fisher(batches)


class PlainMAS(Quadratic):
    def new(self, batches: list[Any]) -> list[Tensor]:
        total, samples = self.zeros(), self.samples(batches)
        for sample in samples:
            norm = self.module.outputs(sample)[0].square().sum()
            for sum_, g in zip(total, torch.autograd.grad(norm, self.parameters, allow_unused=True), strict=True):
                if g is not None:
                    sum_ += g.abs()
        return [value / len(samples) for value in total]


class PlainL2(Quadratic):
    def end(self, task: int, batches: list[Any]) -> None:
        self.importance, self.anchor = [torch.ones_like(p) for p in self.parameters], self.values()


class PlainL2SP(Quadratic):
    """From the first task on: the head to zero, the rest to where it started."""

    def __init__(self, module: Any, lambda_: float, beta: float) -> None:
        super().__init__(module, lambda_)
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
        head = [name.startswith(f"{linear[-1]}.") for name in self.named]
        self.importance = [
            torch.full_like(p, beta / lambda_ if is_head else 1.0)
            for p, is_head in zip(self.parameters, head, strict=True)
        ]
        self.anchor = [value * (not is_head) for value, is_head in zip(self.values(), head, strict=True)]

    def end(self, task: int, batches: list[Any]) -> None: ...


class PlainSI(Quadratic):
    def begin(self, task: int) -> None:
        self.w, self.start = self.zeros(), self.values()

    def before_step(self) -> None:
        super().before_step()
        self.total = [p.grad.clone() for p in self.parameters]

    def after_step(self, before: list[Tensor]) -> None:
        for w, g, p, was in zip(self.w, self.total, self.parameters, before, strict=True):
            w -= g * (p.detach() - was)

    def new(self, batches: list[Any]) -> list[Tensor]:
        moved = [(p.detach() - start) ** 2 for p, start in zip(self.parameters, self.start, strict=True)]
        return [(w / (square + 0.1)).relu() for w, square in zip(self.w, moved, strict=True)]


class PlainRWalk(Quadratic):
    def __init__(self, module: Any, lambda_: float, interval: int) -> None:
        super().__init__(module, lambda_)
        self.interval, self.running = interval, None

    def begin(self, task: int) -> None:
        self.score, self.drop, self.squares, self.at = self.zeros(), self.zeros(), [], self.values()

    def before_step(self) -> None:
        self.own = [p.grad.clone() for p in self.parameters]
        super().before_step()

    def after_step(self, before: list[Tensor]) -> None:
        for drop, g, p, was in zip(self.drop, self.own, self.parameters, before, strict=True):
            drop -= g * (p.detach() - was)
        self.squares.append([g**2 for g in self.own])
        if len(self.squares) == self.interval:
            self._close()

    def _close(self) -> None:
        means = [torch.stack(values).mean(0) for values in zip(*self.squares, strict=True)]
        fisher = self.running or means
        for i, p in enumerate(self.parameters):
            distance = fisher[i] * (p.detach() - self.at[i]) ** 2 / 2
            self.score[i] += (self.drop[i] / (distance + 1e-3)).relu()
        self.running = [0.9 * new + 0.1 * old for new, old in zip(means, fisher, strict=True)]
        self.drop, self.squares, self.at = self.zeros(), [], self.values()

    def end(self, task: int, batches: list[Any]) -> None:
        if self.squares:
            self._close()
        terms = [_unit(self.fisher(batches)), _unit(self.score)]
        self.importance, self.anchor = [a + b for a, b in zip(*terms, strict=True)], self.values()


def _unit(values: list[Tensor]) -> list[Tensor]:
    flat = torch.cat([value.flatten() for value in values])
    return [(value - flat.min()) / (flat.max() - flat.min()) for value in values]


class PlainKFAC(Quadratic):
    """Factors and their product are the functions', which are tested by themselves."""

    def __init__(self, module: Any, lambda_: float) -> None:
        super().__init__(module, lambda_)
        self.blocks: list[KroneckerPenalty] = []

    def before_step(self) -> None:
        for block in self.blocks:
            gradient = block.gradient(block.layer.matrix(self.named))
            for name in block.layer.names:
                p = self.named[name]
                p.grad += self.lambda_ * block.layer.part(name, gradient, p)
        super().before_step()

    def end(self, task: int, batches: list[Any]) -> None:
        factors, rest = kronecker_fisher(
            self.module, batches, labels="exact", logits_fn=lambda module, batch: module.outputs(batch), rest="diagonal"
        )
        self.blocks = [KroneckerPenalty.of(new, self.named) for new in factors.values()]
        self.importance = [rest.get(name, torch.zeros_like(p)) for name, p in self.named.items()]
        self.anchor = self.values()


class PlainShrink(Plain):
    def begin(self, task: int) -> None:
        if task == 0:
            return
        fresh = copy.deepcopy(self.module)
        with _compat.seeded(derive_seed(0, "shrink_and_perturb", task)):
            for part in fresh.modules():
                if callable(getattr(part, "reset_parameters", None)):
                    part.reset_parameters()
        own = {name for prefix, part in self.module.named_modules() if callable(getattr(part, "reset_parameters", None))
               for name in (f"{prefix}.{n}" for n, _ in part.named_parameters(recurse=False))}  # fmt: skip
        for (name, p), new in zip(self.named.items(), fresh.parameters(), strict=True):
            if name in own:
                p.data = 0.4 * p.detach() + 0.1 * new.detach()


class PlainFreezing(Plain):
    """Two epochs, in the first of which only the last Linear layer learns."""

    epochs = 2

    def begin_epoch(self, task: int, epoch: int) -> None:
        linear = [part for part in self.module.modules() if isinstance(part, nn.Linear)]
        head = {id(p) for p in linear[-1].parameters()}
        for p in self.parameters:
            p.requires_grad_(epoch > 0 or id(p) in head)


class PlainAdapters(Plain):
    """The rest of the module stays as it is; where adapters are put, and their first values, is peft's business."""

    def __init__(self, module: Any, kind: Any) -> None:
        super().__init__(add_adapters(module, kind, rank=2))
        self.parameters = [p for p in self.parameters if p.requires_grad]


class PlainPhases(Plain):
    """Two epochs; what a recipe names, and when, are the functions' that a person may call."""

    epochs = 2

    def __init__(self, module: Any, recipe: str, **options: Any) -> None:
        super().__init__(module)
        self.recipe, self.options, self.groups = recipe, options, depth_groups(module)

    def begin(self, task: int) -> None:
        if self.recipe == "auto":
            data = self.module.data(task, self.parameters[0].dtype)
            self.phases = auto_phases(self.module, data, self.groups)[0]
        else:
            self.phases = recipe_phases(self.recipe, self.groups, **self.options)

    def begin_epoch(self, task: int, epoch: int) -> None:
        due = [p for p in self.phases if max(p.get("epoch", 0), self.epochs * p.get("fraction", 0)) <= epoch]
        thawed = {
            id(p)
            for phase in due
            for name in ([phase["thaw"]] if isinstance(phase["thaw"], str) else phase["thaw"])
            for _, p in select_parameters(self.module, name, self.groups)
        }
        for p in self.parameters:
            p.requires_grad_(id(p) in thawed)

    def end(self, task: int, batches: list[Any]) -> None:
        for p in self.parameters:
            p.requires_grad_(True)


class PlainEMA(Plain):
    def __init__(self, module: Any, decay: float) -> None:
        super().__init__(module)
        self.decay = decay

    def begin(self, task: int) -> None:
        self.average: list[Tensor] = []

    def after_step(self, before: list[Tensor]) -> None:
        d, now = self.decay, self.values()
        self.average = [d * a + (1 - d) * p for a, p in zip(self.average or now, now, strict=True)]

    def end(self, task: int, batches: list[Any]) -> None:
        for p, average in zip(self.parameters, self.average, strict=True):
            p.data = average


class PlainWiSEFT(Plain):
    def begin(self, task: int) -> None:
        self.start = self.values()

    def end(self, task: int, batches: list[Any]) -> None:
        for p, start in zip(self.parameters, self.start, strict=True):
            p.data = (p.detach() + start) / 2
