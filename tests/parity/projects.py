"""The modules and data of the matrix: anybody's, with batches of three kinds, and ours."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import FineTuningModule
from lightning_cl.finetuning import MLP
from tests.callbacks.logit_examples import Dicts, HuggingFace, Tuples
from tests.finetuning.examples import stream
from tests.parity.conditions import Condition

SGD = partial(torch.optim.SGD, lr=0.1)
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Named(HuggingFace):
    """Whose ``forward`` takes a batch by its names, as most do."""

    def forward(self, **batch: Any) -> Any:
        return self.net(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(**batch).loss


class Softened(Dicts):
    """The loss of the plain loop too is that of log-softmax: in half precision it is another one."""

    criterion = staticmethod(lambda logits, labels: F.nll_loss(logits.log_softmax(-1), labels))


PROJECTS: dict[str, Any] = {"tuple": Tuples, "dict": Softened, "hf": Named}


class Manual:
    """Before a LightningModule: one that steps its optimizer by itself, once ``automatic_optimization`` is off."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = super().training_step(batch, batch_idx)  # type: ignore[misc]
        if self.automatic_optimization:
            return output
        optimizer = self.optimizers()  # type: ignore[attr-defined]
        optimizer.zero_grad()
        self.manual_backward(output["loss"] if isinstance(output, dict) else output)  # type: ignore[attr-defined]
        optimizer.step()
        return None

    automatic_optimization: Any


class ManualOurs(Manual, FineTuningModule): ...


MANUAL = {name: type(f"Manual{kind.__name__}", (Manual, kind), {}) for name, kind in PROJECTS.items()}


def foreign(structure: str, condition: Condition, dtype: torch.dtype) -> Any:
    module = (MANUAL if condition.manual else PROJECTS)[structure]()
    module.automatic_optimization = not condition.manual
    module = module.to(dtype)
    if condition.compiled:
        # what was traced for another test's module has that one's hooks
        torch.compiler.reset()
    if condition.compiled == "part":
        # tracing all of a BERT takes 20 s
        (module.net.classifier if structure == "hf" else module.net).compile(backend="eager")
    return torch.compile(module, backend="eager") if condition.compiled == "module" else module


class Table(nn.EmbeddingBag):
    def forward(self, inputs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(inputs["input_ids"])


class Tokens(nn.Module):
    """Features of a mapping of token ids and their mask."""

    feature_dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Sequential(Table(30, 8), nn.Linear(8, 16), nn.ReLU())

    def forward(self, inputs: Any) -> Tensor:
        return self.parts(inputs)


def ours(structure: str, condition: Condition, **options: Any) -> FineTuningModule:
    kind: Any = ManualOurs if condition.manual else FineTuningModule
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = Tokens() if structure == "hf" else MLP((8,), hidden=(16,))
        module = kind(backbone, input_shape=None if structure == "hf" else (8,), optimizer=SGD, **options)
    module.automatic_optimization = not condition.manual
    if condition.compiled:
        torch.compiler.reset()
        module.backbone.compile(backend="eager")
    return module


class OneTask(LightningDataModule):
    """A task of a stream, in batches of one of the three kinds; the loader is as anybody makes it."""

    def __init__(self, task: Any, structure: str, batch_size: int = 10) -> None:
        super().__init__()
        self.task, self.structure, self.batch_size = task, structure, batch_size

    def train_dataloader(self) -> DataLoader:
        data = self.task.train
        x, y = data.batch(torch.arange(len(data)))[:2]
        samples: Any = list(zip(x, y, strict=True))
        return DataLoader(samples, batch_size=self.batch_size, collate_fn=self._collate)

    def _collate(self, samples: Any) -> Any:
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        if self.structure == "tuple":
            return [x, y]
        if self.structure == "dict":
            return {"image": x, "label": y, "split": "train"}
        from transformers import BatchEncoding

        tokens = (2 * x).round().long().clamp(-14, 15) + 14
        return BatchEncoding({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": y})


def trainer(condition: Condition, *callbacks: Any, **options: Any) -> Trainer:
    return Trainer(**{**QUIET, "callbacks": list(callbacks), **condition.options(), **options})


def tasks() -> Any:
    return stream()[:2]
