"""Plain loops of the methods on our module: on the very batches that the method has trained on."""

import copy
import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback
from torch import Tensor, nn

from lightning_cl.functional import fit_bias
from tests.parity.conditions import Condition
from tests.parity.memory_loops import wide

LR = 0.1
NAMES = [f"c{i}" for i in range(6)]


class Recorded(Callback):
    """For each fit the number of tasks, whether it is a stage of balanced fine-tuning, and each epoch's batches."""

    def __init__(self) -> None:
        self.fits: list[tuple[int, bool, list[list[Any]]]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.fits.append((len(pl_module.tasks), hasattr(trainer.datamodule, "holds_memory"), []))

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.fits[-1][2].append([])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.fits[-1][2][-1].append(batch)


class PlainClassifier:
    """``loss(x, y, old, n)``: of the first ``old`` of ``n`` classes there is a teacher."""

    reinitialize = False

    def __init__(self, model: Any) -> None:
        self.model, self.initial, self.teacher = model, copy.deepcopy(model), None

    def logits(self, model: Any, x: Any) -> Tensor:
        return model.head(model.backbone(x))

    def loss(self, x: Any, y: Tensor, old: int, n: int) -> Tensor:
        return F.cross_entropy(self.logits(self.model, x), y)

    def before_step(self, old: int) -> None: ...

    def end_fit(self, old: int) -> None: ...

    def rule(self, callback: Any) -> dict[str, Tensor]:
        """What the module's rule for prediction has to be."""
        return {}

    def learn(self, condition: Condition, fits: list[tuple[int, bool, list[list[Any]]]]) -> Tensor:
        for at, (tasks, is_stage, epochs) in enumerate(fits):
            if self.reinitialize:
                self.model = copy.deepcopy(self.initial)
            self.model.learn_classes(NAMES[: 2 * tasks], [[2 * i, 2 * i + 1] for i in range(tasks)])
            optimizer = torch.optim.SGD(self.model.parameters(), lr=LR * (0.1 if is_stage else 1.0))
            for batches in epochs:
                for i in range(0, len(batches), condition.accumulate):
                    self._step(optimizer, batches[i : i + condition.accumulate], condition, 2 * tasks - 2)
            if at + 1 == len(fits) or fits[at + 1][0] > tasks:
                self.end_fit(2 * tasks - 2)
                self.teacher = copy.deepcopy(self.model)
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])

    def _step(self, optimizer: torch.optim.Optimizer, group: list[Any], condition: Condition, old: int) -> None:
        half = condition.half
        for batch in group:
            x, y = parts(batch)
            with torch.autocast("cpu", half, cache_enabled=False) if half is not None else nullcontext():
                loss = self.loss(x, y, old, old + 2)
            (loss / condition.accumulate).backward()
        self.before_step(old)
        if condition.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), condition.clip)
        optimizer.step()
        optimizer.zero_grad()


def parts(batch: Any) -> tuple[Any, Tensor]:
    """Inputs as the backbone takes them, and labels."""
    if isinstance(batch, list | tuple):
        return batch[0], batch[1]
    if "image" in batch:
        return batch["image"], batch["label"]
    return {name: value for name, value in batch.items() if name != "labels"}, batch["labels"]


class PlainGDumb(PlainClassifier):
    reinitialize = True


class PlainICaRL(PlainClassifier):
    def loss(self, x: Any, y: Tensor, old: int, n: int) -> Tensor:
        z = wide(self.logits(self.model, x))
        target = F.one_hot(y, n).to(z.dtype)
        if self.teacher is not None:
            with torch.no_grad():
                target[:, :old] = wide(self.logits(self.teacher, x)).sigmoid()
        q = z.sigmoid()
        return -(target * q.log() + (1 - target) * (1 - q).log()).sum(1).mean()

    @torch.no_grad()
    def rule(self, callback: Any) -> dict[str, Tensor]:
        x, labels = stored(callback.memory), callback.memory.labels
        features = F.normalize(self.model.backbone(x), dim=1)
        means = torch.stack([features[labels == c].mean(0) for c in range(4)])
        return {"means": F.normalize(means, dim=1)}


def stored(memory: Any) -> Any:
    found = memory.at(slice(0, len(memory)))
    return parts(found if "0" not in found else (found["0"], found["1"]))[0]


class PlainWA(PlainClassifier):
    """Rescaling alone; L_d of its paper beside it in the second."""

    def end_fit(self, old: int) -> None:
        if old:
            with torch.no_grad():
                lengths = self.model.head.weight.norm(dim=1)
                self.model.head.weight[old:] *= lengths[:old].mean() / lengths[old:].mean()


class _Distilled(PlainClassifier):
    def loss(self, x: Any, y: Tensor, old: int, n: int) -> Tensor:
        z = self.logits(self.model, x)
        own = F.cross_entropy(z, y)
        if self.teacher is None:
            return own
        with torch.no_grad():
            target = (wide(self.logits(self.teacher, x))[:, :old] / 2).softmax(1)
        distilled = -(target * (wide(z)[:, :old] / 2).log_softmax(1)).sum(1).mean()
        return self.combined(own, distilled, old / n)

    def combined(self, own: Tensor, distilled: Tensor, share: float) -> Tensor:
        return share * distilled + (1 - share) * own


class PlainPaperWA(_Distilled, PlainWA): ...


class PlainBiC(_Distilled):
    def rule(self, callback: Any) -> dict[str, Tensor]:
        self.model.eval()
        with torch.no_grad():
            z = self.logits(self.model, stored(callback.validation))
        scale, shift = fit_bias(z, callback.validation.labels, torch.arange(4) >= 2, ridge=1e-3)
        return {"scale": torch.tensor([1.0, 1.0, scale, scale]), "shift": torch.tensor([0.0, 0.0, shift, shift])}


class PlainEEIL(_Distilled):
    def combined(self, own: Tensor, distilled: Tensor, share: float) -> Tensor:
        return own + distilled


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


class PlainLUCIR(PlainClassifier):
    def loss(self, x: Any, y: Tensor, old: int, n: int) -> Tensor:
        features = self.model.backbone(x)
        z = self.model.head(features)
        own = F.cross_entropy(z, y)
        if self.teacher is None:
            return own
        with torch.no_grad():
            before = wide(self.teacher.backbone(x))
        own = own + 5 * math.sqrt(old / (n - old)) * (1 - (unit(wide(features)) * unit(before)).sum(1)).mean()
        s = wide(self.model.head.similarities(features))
        terms = [torch.relu(0.5 - s[i, y[i]] + s[i, c]) for i in range(len(y)) if y[i] < old for c in range(old, n)]
        return own + torch.stack(terms).sum() / int((y < old).sum())

    def before_step(self, old: int) -> None:
        self.model.head.weight.grad[:old] = 0


class PlainPODNet(PlainClassifier):
    def stages(self, model: Any, x: Any) -> list[Tensor]:
        """What the backbone's parts put out one after the other, the features last."""
        found, parts = [], model.backbone.layers if isinstance(x, Tensor) else model.backbone.parts
        for part in parts:
            x = part(x)
            found.append((part, x))
        return [out for part, out in found if any(True for _ in part.parameters())] + [x]

    def loss(self, x: Any, y: Tensor, old: int, n: int) -> Tensor:
        *now, features = self.stages(self.model, x)
        z = wide(self.model.head(features))
        others = torch.stack([torch.cat([row[:c], row[c + 1 :]]) for row, c in zip(z, y.tolist(), strict=True)])
        margin = self.model.head.eta * 0.6
        own = torch.relu(torch.logsumexp(others, 1) - (z.gather(1, y[:, None])[:, 0] - margin)).mean()
        if self.teacher is None:
            return own
        with torch.no_grad():
            *old_stages, before = self.stages(self.teacher, x)
        pairs = zip(now, old_stages, strict=True)
        distances = [(unit(wide(a)) - unit(wide(b))).norm(dim=1).mean() for a, b in pairs]
        flat = (1 - (unit(wide(features)) * unit(wide(before))).sum(1)).mean()
        return own + math.sqrt(n / (n - old)) * (3 * torch.stack(distances).mean() + flat)
