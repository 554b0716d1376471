"""How a module that classifies is validated and tested."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_cl.finetuning._active_classes import ActiveClasses
from lightning_cl.finetuning.batch_parts import split_batch


class EvaluationSteps(LightningModule):
    """Steps that log a metric for each dataloader; what they read is the module's.

    The metrics keep nothing in the state dict: they are new in every epoch, of the number of classes known then.
    """

    backbone: nn.Module
    head: Any
    rule: Any
    reads: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    metric_factory: Callable[..., Any]
    metric_name: str
    test_given_task: bool
    _active: ActiveClasses

    def _forget_metrics(self) -> None:
        self.eval_metrics, self.given_task_metrics = nn.ModuleList(), nn.ModuleList()

    def _evaluate(self, batch: Any, prefix: str, dataloader_idx: int) -> None:
        x, y, task = split_batch(batch)
        scores = self(x, task)
        self._score(f"{prefix}_{self.metric_name}", "eval_metrics", scores, y, dataloader_idx)
        if prefix == "test" and self.test_given_task:
            own = self._active.mask(scores, "task", y=y, task=task)
            self._score(f"test_{self.metric_name}_given_task", "given_task_metrics", own, y, dataloader_idx)
        if prefix == "val":
            logits = scores
            if self.rule is not None:  # its scores need not be logits
                logits = self._active.mask(self.head(self.backbone(x)), self.reads, task=task)
            self.log("val_loss", self.loss(logits, y), batch_size=len(y), add_dataloader_idx=False, sync_dist=True)

    def _score(self, name: str, store: str, logits: Tensor, y: Tensor, dataloader_idx: int) -> None:
        """Log a metric of its own for each dataloader, kept in the ModuleList called ``store``."""
        metrics: Any = getattr(self, store)
        while len(metrics) <= dataloader_idx:
            metrics.append(self.metric_factory(num_classes=len(self.head.class_names)).to(self.device))
        metric = metrics[dataloader_idx]
        metric.update(logits, y)
        where = f"{store}.{dataloader_idx}"
        self.log(name, metric, on_step=False, on_epoch=True, batch_size=len(y), metric_attribute=where)

    def on_validation_epoch_start(self) -> None:
        """New metrics, of the number of classes known now."""
        self._forget_metrics()

    def on_test_epoch_start(self) -> None:
        """New metrics, of the number of classes known now."""
        self._forget_metrics()

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``val_<metric>`` and ``val_loss``."""
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``test_<metric>``, one value for each dataloader."""
        self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> list[str]:
        """Class names, one for each sample of ``x``, a mapping, ``(x, ...)`` or, for a multi-head, ``(x, y, task)``."""
        x, _, task = split_batch(batch)
        chosen = self(x, task).argmax(1)
        return [self.head.class_names[i] for i in chosen.tolist()]
