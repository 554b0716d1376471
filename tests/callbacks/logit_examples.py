"""Projects of three kinds, each with a plain loop of every method that trains on logits or stored samples."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import DER, ERACE, LwF, Replay
from lightning_cl.functional.batches import batch_size, concatenate, rebuild
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory import Memory

N_CLASSES = 4


class Tuples(LightningModule):
    """Batches ``(x, y)``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, N_CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        loss = F.cross_entropy(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        """For the plain loop."""
        return self.net(batch[0]), batch[1]

    @staticmethod
    def data(task: int, dtype: torch.dtype) -> list[Any]:
        generator = torch.Generator().manual_seed(10 + task)
        batches = []
        for _ in range(8):
            y = torch.randint(2, (6,), generator=generator) + 2 * task
            x = torch.randn(6, 3, generator=generator, dtype=torch.float64) + y[:, None]
            batches.append((x.to(dtype), y))
        return batches


class Dicts(Tuples):
    """Batches with names; log-softmax and nll_loss; the step gives a dict."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch["image"])
        return {"loss": nn.NLLLoss()(logits.log_softmax(-1), batch["label"]), "seen": len(logits)}

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        return self.net(batch["image"]), batch["label"]

    @staticmethod
    def data(task: int, dtype: torch.dtype) -> list[Any]:
        return [{"image": x, "label": y, "split": "train"} for x, y in Tuples.data(task, dtype)]


class HuggingFace(Tuples):
    """A tiny random BERT that computes its loss itself; padded batches of its tokenizer's kind."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        LightningModule.__init__(self)
        sizes = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = BertConfig(
            **sizes, intermediate_size=8, max_position_embeddings=12, num_labels=N_CLASSES,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, attn_implementation="eager",
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = BertForSequenceClassification(config)

    def forward(self, batch: Any) -> Any:
        return self.net(**batch)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).loss

    def outputs(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return self.net(**inputs).logits, batch["labels"]

    @staticmethod
    def data(task: int, dtype: torch.dtype) -> list[Any]:
        from transformers import BatchEncoding

        generator = torch.Generator().manual_seed(10 + task)
        batches = []
        for length in (5, 7, 4, 9, 6, 5, 8, 7):
            y = torch.randint(2, (6,), generator=generator) + 2 * task
            tokens = torch.randint(5, 30, (6, length), generator=generator)
            mask = (torch.arange(length) < torch.randint(3, length + 1, (6, 1), generator=generator)).long()
            batches.append(BatchEncoding({"input_ids": tokens * mask, "attention_mask": mask, "labels": y}))
        return batches


PROJECTS: dict[str, type[Tuples]] = {"tuple": Tuples, "dict": Dicts, "hf": HuggingFace}

METHODS: dict[str, Callable[[], Any]] = {
    "replay-mixed": lambda: Replay(9, batch_size=4),
    "replay-separate": lambda: Replay(9, mode="separate", batch_size=4),
    "der": lambda: DER(9, 0.3, batch_size=4),
    "derpp": lambda: DER(9, 0.3, 0.7, batch_size=4),
    "er_ace": lambda: ERACE(9, batch_size=4),
    "lwf": lambda: LwF(0.8, temperature=2.0, scale_by_T2=True),
}


class Plain:
    """What a person would write for a method, with the draws of the callback's memory."""

    def __init__(self, method: str, module: Tuples) -> None:
        self.method, self.module = method, module
        name = {"derpp": "der"}.get(method, method.split("-")[0])
        self.memory = Memory(9, "reservoir", derive_seed(0, name))
        self.logits: dict[bytes, Tensor] = {}
        self.teacher: Any = None
        self.k = 1

    def drawn(self, batch: Any, n: int = 4) -> Any:
        slots = self.memory.draw(n)
        return rebuild(batch, self.memory.at(slots)), self.memory.extras(slots)

    def loss(self, batch: Any) -> Tensor:
        empty = len(self.memory) == 0
        if self.method == "replay-mixed" and not empty:
            batch = concatenate(batch, self.drawn(batch)[0])
        z, y = self.module.outputs(batch)
        own = F.cross_entropy(z, y)
        if self.method == "lwf" and self.teacher is not None:
            with torch.no_grad():
                soft = (_fp32(self.teacher.outputs(batch)[0]) / 2).softmax(1)
            return own + 0.8 * 4 * F.kl_div((_fp32(z) / 2).log_softmax(1), soft, reduction="batchmean")
        if self.method == "er_ace":
            present = y.unique()
            own = F.cross_entropy(z[:, present], torch.searchsorted(present, y))
        self.seen = z.detach()
        if empty or self.method in ("lwf", "replay-mixed"):
            return own
        other, extras = self.drawn(batch)
        z, y = self.module.outputs(other)
        if self.method == "replay-separate":
            return own / self.k + (1 - 1 / self.k) * F.cross_entropy(z, y)
        if self.method == "er_ace":
            return own + F.cross_entropy(z, y)
        total = own + 0.3 * F.mse_loss(_fp32(z), extras["logits"].to(_fp32(z).dtype))
        if self.method == "derpp":
            z, y = self.module.outputs(self.drawn(batch)[0])
            total = total + 0.7 * F.cross_entropy(z, y)
        return total

    def after(self, batch: Any) -> None:
        if self.method in ("der", "derpp"):
            labels = next(batch[key] for key in ("label", "labels") if key in batch) if hasattr(batch, "keys") else None
            extras = {"logits": self.seen.float(), "widths": torch.full((batch_size(batch),), N_CLASSES)}
            self.memory.add(batch, labels if labels is not None else batch[1], extras)
        elif self.method == "er_ace":
            self.memory.add(batch)

    def learn(self, dtype: torch.dtype, *, accumulate: int = 1, clip: float | None = None, half: Any = None) -> Tensor:
        parameters = list(self.module.parameters())
        for task in range(2):
            batches = self.module.data(task, dtype)
            optimizer = torch.optim.SGD(parameters, lr=0.1)
            for i, batch in enumerate(batches):
                with torch.autocast("cpu", half, cache_enabled=False) if half is not None else nullcontext():
                    loss = self.loss(batch)
                (loss / accumulate).backward()
                self.after(batch)
                if (i + 1) % accumulate == 0:
                    if clip is not None:
                        nn.utils.clip_grad_norm_(parameters, clip)
                    optimizer.step()
                    optimizer.zero_grad()
            if self.method.startswith("replay"):
                for batch in batches:
                    self.memory.add(batch)
            self.teacher = copy.deepcopy(self.module).eval()
            self.k += 1
        return torch.cat([p.detach().flatten() for p in parameters])


def loader(batches: list[Any]) -> DataLoader:
    """A loader of ready batches, in this order."""
    return DataLoader(batches, batch_size=None)  # type: ignore[arg-type]


def _fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])
