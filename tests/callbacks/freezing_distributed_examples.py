"""Three thaws in one process or in several, on the same global batches."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import FreezingSchedule

PHASES: list[dict[str, Any]] = [
    {"thaw": "head"},
    {"thaw": "re:^upper$", "step": 2},
    {"thaw": "re:^middle$", "epoch": 1},
    {"thaw": "all", "fraction": 0.75},
]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated and clipped": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.05},
    "not held by the optimizer": {"filtered": True},
    "unused parameters are searched for": {"strategy": "ddp_find_unused_parameters_true"},
    "manual optimization": {"manual": True},
}


class Staged(LightningModule):
    """A stem with BatchNorm that is never thawed, three stages and a head."""

    def __init__(self, filtered: bool = False, manual: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.stem = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU())
            self.middle = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.ReLU())
            self.lower = nn.Sequential(nn.Linear(8, 8), nn.GroupNorm(2, 8), nn.ReLU())
            self.upper = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
            self.head = nn.Linear(8, 3)
        self.filtered, self.automatic_optimization = filtered, not manual

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scores = self.head(self.upper(self.middle(self.lower(self.stem(batch[0])))))
        loss = nn.functional.cross_entropy(scores, batch[1])
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        parameters = self.head.parameters() if self.filtered else self.parameters()
        return torch.optim.Adam(parameters, lr=0.05)


class Follow(Callback):
    """All parameters behind every batch, which are trainable, and which have a gradient."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.trainable: list[int] = []
        self.statistics: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.weights.append(nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone())
        self.trainable.append(sum(p.requires_grad for p in pl_module.parameters()))
        self.statistics.append(pl_module.stem[1].running_mean.clone())


class Shares:
    """Every global batch of eight, or this process's part of it."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x, self.y = torch.randn(48, 6, generator=generator), torch.randint(3, (48,), generator=generator)

    def loader(self, rank: int, processes: int) -> Any:
        share = 8 // processes
        rows = [torch.arange(i + rank * share, i + (rank + 1) * share) for i in range(0, 48, 8)]
        return DataLoader([(self.x[r], self.y[r]) for r in rows], batch_size=None)


def fit(case: str, processes: int, folder: str | None = None, step: int | None = None) -> tuple[Follow, Any]:
    """Four epochs of six batches, with thaws at step 2, at epoch 1 and in the last epoch.

    With a folder it writes checkpoints there, or goes on from the one of a step.
    """
    options = {key: value for key, value in CASES[case].items() if key != "strategy"}
    module = Staged(options.pop("filtered", False), options.pop("manual", False))
    module.train_dataloader = lambda: Shares().loader(module.global_rank, processes)  # type: ignore[method-assign]
    strategy = CASES[case].get("strategy", "ddp") if processes > 1 else "auto"
    schedule, follow = FreezingSchedule(phases=PHASES, keep_frozen="re:^stem$", table=False), Follow()
    saver = [ModelCheckpoint(folder, "{step}", every_n_train_steps=6, save_top_k=-1)] if folder and not step else []
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, max_epochs=4, logger=False,
        enable_checkpointing=bool(saver), enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, callbacks=[schedule, follow, *saver], **options,
    )  # fmt: skip
    trainer.fit(module, ckpt_path=f"{folder}/step={step}.ckpt" if step else None, weights_only=True if step else None)
    return follow, trainer
