"""The LightningModule that is fine-tuned on one task after another."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning.backbones import backbone_from_spec
from lightning_cl.finetuning.cosine_head import CosineHead
from lightning_cl.finetuning.head import ClassifierHead
from lightning_cl.finetuning.rules import make_rule
from lightning_cl.finetuning.task_heads import TaskHeads
from lightning_cl.functional.masking import mask_logits


class FineTuningModule(LightningModule):
    """A backbone and a classifier head that learns the classes of each task it is fitted on.

    Batches are ``(x, y)`` or ``(x, y, task)``. In ``setup("fit")`` the module reads ``seen_tasks`` (or ``task``) from
    the DataModule and adds the classes that are new, before optimizers are built and before a checkpoint is restored.
    Row i of the head is class ``class_names[i]``, and label i of the data has to be that class. Checkpoints hold
    plain values only, so ``FineTuningModule.load_from_checkpoint(path)`` rebuilds a grown model from the file alone
    when the backbone is one of ours; another one is given again: ``load_from_checkpoint(path, backbone=...)``.

    Evaluation and prediction go by the largest logit, or by the rule that a method has set by :meth:`set_rule`
    (nearest mean, bias correction). A rule is part of the module: its state is in the ``state_dict``, its name in the
    hyperparameters, and it grows with the head.

    With loaders that are not ours, give ``class_names`` up front.

    Args:
        backbone: An ``nn.Module`` giving features (N, d); or a callable that takes ``input_shape`` and returns one; or
            the plain values that a checkpoint holds.
        input_shape: Shape of one sample; needed to build a backbone and to measure d.
        class_names: Classes whose rows exist from the start.
        tasks: Rows of each task, as far as tasks are known from the start.
        head: ``"growing"``: rows are added as classes arrive. ``"multi"``: the same rows, read one task at a time by
            task id (task-incremental). ``"separate"``: like ``"multi"``, with a layer of its own for each task.
            ``"fixed"``: only ``class_names``; a new class is an error.
        head_layer: What the head computes: ``"linear"``, or ``"cosine"``, a
            :class:`~lightning_cl.finetuning.CosineHead` (not for separate heads).
        head_options: The cosine head's ``proxies``, ``eta`` and ``imprint``. ``imprint`` starts the rows of classes
            that come after the first task where their features lie, read from the DataModule's
            ``importance_dataloader()``.
        active_classes: Logits in the training loss: classes ``"seen"`` so far, those of the sample's own ``"task"``,
            or ``"all"`` rows. By default ``"task"`` for a multi-head or separate heads, else ``"seen"``. Evaluation
            reads the task's own for these, else the classes seen.
        optimizer: ``params -> Optimizer``; Adam with lr 1e-3 by default.
        scheduler: ``optimizer -> LRScheduler``, or None.
        scheduler_interval: ``"epoch"`` or ``"step"``.
        monitor: Metric of ReduceLROnPlateau.
        loss: ``(logits, targets) -> mean loss``; cross entropy by default.
        metric: ``num_classes -> torchmetrics.Metric`` fed with (logits, targets); micro accuracy by default.
        metric_name: Its name in the logs and results.
        test_given_task: Whether ``test_step`` also logs ``test_<metric>_given_task``, read over the classes of the
            sample's own task only: one class-incremental run then gives a task-incremental number too.
        initialize: ``module -> None``, called once for the weights there are at the start, for example
            :func:`~lightning_cl.finetuning.xavier_uniform`; rows that the head gains later are drawn as ever.
        seed: Seed of new head rows.

    Raises:
        InputError: For values outside these, no classes at all, a class that a fixed head does not have, labels in
            another order than the rows, a backbone of wrong output, or one that a checkpoint does not hold.
    """

    def __init__(
        self,
        backbone: Any,
        *,
        input_shape: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
        tasks: Sequence[Sequence[int]] = (),
        head: Literal["growing", "multi", "separate", "fixed"] = "growing",
        head_layer: Literal["linear", "cosine"] = "linear",
        head_options: dict[str, Any] | None = None,
        active_classes: Literal["seen", "task", "all"] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        scheduler: Callable[..., Any] | None = None,
        scheduler_interval: str = "epoch",
        monitor: str = "val_loss",
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        metric: Callable[..., Any] | None = None,
        metric_name: str = "accuracy",
        test_given_task: bool = False,
        initialize: Callable[[nn.Module], Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if head not in ("growing", "multi", "separate", "fixed"):
            raise InputError(
                f"head={head!r}", "'growing', 'multi', 'separate' or 'fixed'", "leave it out for 'growing'"
            )
        if active_classes not in (None, "seen", "task", "all"):
            raise InputError(f"active_classes={active_classes!r}", "'seen', 'task' or 'all'", "leave it out")
        if isinstance(backbone, dict):
            backbone = backbone_from_spec(backbone)
        elif not isinstance(backbone, nn.Module):
            if not callable(backbone):
                raise InputError(
                    f"backbone={backbone!r}",
                    "a module; a checkpoint holds only backbones of lightning_cl.finetuning",
                    "pass your own again: load_from_checkpoint(path, backbone=MyBackbone())",
                )
            backbone = backbone(input_shape)
        self.backbone = backbone
        kind = _head_kind(head, head_layer, options := dict(head_options or {}))
        self.head: Any = kind(_feature_dim(backbone, input_shape), (), seed, **options)
        self.head_kind, self.reads = head, "task" if head in ("multi", "separate") else "seen"
        self.active_classes = active_classes or self.reads
        self.optimizer_factory, self.scheduler_factory = optimizer or _adam, scheduler or None
        self.scheduler_interval, self.monitor = scheduler_interval, monitor
        self.loss = loss or nn.functional.cross_entropy
        self.metric_factory, self.metric_name = metric or _accuracy, metric_name
        self.test_given_task = test_given_task
        self.tasks: list[list[int]] = []
        self.rule: Any = None
        self._to_imprint: list[str] = []
        self.save_hyperparameters(
            {
                "backbone": getattr(backbone, "spec", None),
                "input_shape": list(input_shape) if input_shape is not None else None,
                "class_names": [],
                "head": head,
                "head_layer": head_layer,
                "head_options": options,
                "active_classes": self.active_classes,
                "metric_name": metric_name,
                "test_given_task": test_given_task,
                "seed": seed,
                "tasks": [],
                "rule": None,
            },
            logger=False,
        )
        # one for each dataloader; they keep nothing in the state dict
        self.eval_metrics, self.given_task_metrics = nn.ModuleList(), nn.ModuleList()
        self.learn_classes(class_names, tasks)
        if initialize is not None:
            initialize(self)

    @property
    def class_names(self) -> list[str]:
        """Names of the head's rows."""
        return self.head.class_names

    @property
    def seen_classes(self) -> list[int]:
        """Rows of the classes of the tasks so far, in order; all rows where no task is known."""
        return self._masks["seen"].nonzero().flatten().tolist()

    def set_rule(self, name: str | None) -> Any:
        """Predict by a rule of :data:`~lightning_cl.finetuning.rules.RULES`; by the logits again if ``name`` is None.

        Returns:
            The rule, without state if it was not there; a rule that the module has already keeps its state.

        Raises:
            InputError: For a name that is not known, or if the module has another rule.
        """
        present = self.hparams["rule"]
        if name == present:
            return self.rule
        if name is not None and present is not None:
            raise InputError(
                f"rule {name!r} for a module that predicts by {present!r}",
                "one rule for prediction",
                "take one of the methods that set one, or module.set_rule(None) first",
            )
        like = next(self.head.parameters(), torch.empty(0))
        rows = len(self.class_names)
        self.rule = None if name is None else make_rule(name, self.head.in_features, rows, like)
        self.hparams["rule"] = name
        return self.rule

    def setup(self, stage: str) -> None:
        """Add the rows of the classes that the DataModule's tasks bring."""
        if stage != "fit":
            return
        datamodule = getattr(self._trainer, "datamodule", None)
        task = getattr(datamodule, "task", None)
        before = self.tasks
        if hasattr(task, "class_indices"):
            self._learn_tasks(getattr(datamodule, "seen_tasks", None) or [task])
        if before and getattr(self.head, "imprint", False):
            known = {row for task in before for row in task}
            arrived = {row for task in self.tasks[len(before) :] for row in task} - known
            self._to_imprint = [self.class_names[row] for row in sorted(arrived)]
        if not self.class_names:
            raise InputError(
                "a head without classes", "class_names, or a task's data", "pass class_names=['cat', 'dog']"
            )

    def _learn_tasks(self, tasks: Sequence[Any]) -> None:
        names = {i: name for task in tasks for i, name in zip(task.class_indices, task.classes, strict=True)}
        rows = list(dict.fromkeys([*self.class_names, *(names[i] for i in sorted(names))]))
        if self.head_kind == "fixed" and len(rows) > len(self.class_names):
            raise InputError(
                f"new classes {rows[len(self.class_names) :]}", "classes of the fixed head", "use head='growing'"
            )
        for i, name in names.items():
            if rows[i : i + 1] != [name]:
                raise InputError(
                    f"class {name!r} is label {i} of the data and row {rows.index(name)} of the head",
                    f"labels in the order of the head's rows, {rows}",
                    "give the stream's classes in that order, or start from a head without rows",
                )
        # a task that comes alone stands behind those learnt before
        before = self.tasks[: tasks[0].id] if len(tasks) == 1 else []
        self.learn_classes(rows, [*before, *(task.class_indices for task in tasks)])

    def learn_classes(self, class_names: Sequence[str], tasks: Sequence[Sequence[int]] = ()) -> None:
        """Add rows for the names that are new, and set which rows belong to which task so far."""
        rows = list(dict.fromkeys([*self.class_names, *class_names]))
        for task in tasks if self.head_kind == "separate" else ():
            self.head.add_classes([rows[i] for i in task])
        self.head.add_classes(rows)
        if self.class_names != rows:
            raise InputError(
                f"tasks {[list(task) for task in tasks]} for head='separate'",
                "tasks whose classes stand behind those of the tasks before",
                "use head='multi'",
            )
        self.tasks = [[int(i) for i in task] for task in tasks] if tasks else self.tasks
        self.hparams.update(class_names=list(self.class_names), tasks=self.tasks)
        n = len(self.class_names)
        table = torch.zeros(max(1, len(self.tasks)), n, dtype=torch.bool)
        task_of = torch.full((n,), -1)
        for t, members in enumerate(self.tasks):
            table[t, members] = True
            task_of[members] = t
        seen = table.any(0) if self.tasks else torch.ones(n, dtype=torch.bool)
        # plain attributes: they follow from `tasks`, which the checkpoint holds
        self._masks = {"table": table, "task_of": task_of, "seen": seen}
        self._all_seen = bool(seen.all())
        if self.rule is not None:
            self.rule.resize(n)

    def on_fit_start(self) -> None:
        """Imprint the rows of classes that are new; a fit that goes on from a checkpoint has them from there."""
        names, self._to_imprint = self._to_imprint, []
        if not names:
            return
        loader_of = getattr(getattr(self._trainer, "datamodule", None), "importance_dataloader", None)
        if loader_of is None:
            raise InputError(
                "imprint=True with data that have no importance_dataloader()",
                "a DataModule that gives the training data unshuffled and not augmented",
                "use TaskDataModule, define importance_dataloader(), or leave imprint out",
            )
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        with _compat.evaluating(self), torch.no_grad():
            for x, y, *_ in loader_of():
                y = y.cpu()
                chosen = torch.isin(y, torch.tensor([self.class_names.index(name) for name in names]))
                if chosen.any():
                    features = self.backbone(x[chosen.to(x.device)].to(self.device)).cpu()
                    for i in y[chosen].unique().tolist():
                        found[self.class_names[i]].append(features[y[chosen] == i])
        self.head.imprint_rows({name: torch.cat(parts) for name, parts in found.items() if parts})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Grow to the checkpoint's classes before its weights are loaded."""
        self._to_imprint = []
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if saved.get("rule") != self.hparams["rule"]:
            self.set_rule(None)
            self.set_rule(saved.get("rule"))
        self.learn_classes(saved.get("class_names", []), saved.get("tasks", []))

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        """Logits (N, C) of inputs (N, ...), or the rule's scores; classes that evaluation does not read are masked."""
        features = self.backbone(x)
        return self._mask(self._scores(self.head(features), features), self.reads, task=task)

    def _scores(self, logits: Tensor, features: Tensor) -> Tensor:
        """What the rule makes of the logits; the logits where there is none, or none yet for a class seen."""
        if self.rule is None or not self.rule.covers(self._masks["seen"].to(logits.device)):
            return logits
        return self.rule(logits, features)

    def _mask(self, logits: Tensor, active: str, *, y: Tensor | None = None, task: Tensor | None = None) -> Tensor:
        if active == "all" or (active == "seen" and self._all_seen):
            return logits
        if self._masks["seen"].device != logits.device:
            self._masks = {name: mask.to(logits.device) for name, mask in self._masks.items()}
        if active == "seen":
            return mask_logits(logits, self._masks["seen"])
        if task is None:
            if y is None:
                raise InputError("a batch without task ids", "(x, y, task)", "use stream.scenario=task_incremental")
            task = self._masks["task_of"][y]
        return mask_logits(logits, self._masks["table"][task])

    def all_logits(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of every row, none masked, and their targets: what distillation and logit replay read."""
        return self.head(self.backbone(batch[0])), batch[1]

    @property
    def logit_groups(self) -> list[list[int]]:
        """Rows that share a softmax in evaluation: those of each task so far, or one group of all that is trained."""
        if self.reads == "task":
            return [list(task) for task in self.tasks]
        rows = torch.arange(len(self.class_names))
        return [rows.tolist() if self.active_classes == "all" else rows[self._masks["seen"].cpu()].tolist()]

    def importance_logits(self, batch: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the training loss and their targets: what the Fisher information is taken of."""
        logits, y = self.all_logits(batch)
        return self.training_logits(logits, batch), y

    def training_logits(self, logits: Tensor, batch: Sequence[Tensor]) -> Tensor:
        """Logits (N, C) of a batch as the training loss reads them: those of inactive classes are masked."""
        _, y, *rest = batch
        return self._mask(logits, self.active_classes, y=y, task=rest[0] if rest else None)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        """Mean loss of the batch over the active classes."""
        logits, y = self.importance_logits(batch)
        loss = self.loss(logits, y)
        # logging costs more than a small model's step, so only on the steps that loggers read
        trainer: Any = self._trainer
        if trainer is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def _evaluate(self, batch: Sequence[Tensor], prefix: str, dataloader_idx: int) -> None:
        x, y, *rest = batch
        scores = self(x, *rest)
        self._score(f"{prefix}_{self.metric_name}", "eval_metrics", scores, y, dataloader_idx)
        if prefix == "test" and self.test_given_task:
            own = self._mask(scores, "task", y=y, task=rest[0] if rest else None)
            self._score(f"test_{self.metric_name}_given_task", "given_task_metrics", own, y, dataloader_idx)
        if prefix == "val":
            logits = scores
            if self.rule is not None:  # its scores need not be logits
                logits = self._mask(self.head(self.backbone(x)), self.reads, task=rest[0] if rest else None)
            self.log("val_loss", self.loss(logits, y), batch_size=len(y), add_dataloader_idx=False, sync_dist=True)

    def _score(self, name: str, store: str, logits: Tensor, y: Tensor, dataloader_idx: int) -> None:
        """Log a metric of its own for each dataloader, kept in the ModuleList called ``store``."""
        metrics: Any = getattr(self, store)
        while len(metrics) <= dataloader_idx:
            metrics.append(self.metric_factory(num_classes=len(self.class_names)).to(self.device))
        metric = metrics[dataloader_idx]
        metric.update(logits, y)
        where = f"{store}.{dataloader_idx}"
        self.log(name, metric, on_step=False, on_epoch=True, batch_size=len(y), metric_attribute=where)

    def on_validation_epoch_start(self) -> None:
        """New metrics, of the number of classes known now."""
        self.eval_metrics = nn.ModuleList()

    def on_test_epoch_start(self) -> None:
        """New metrics, of the number of classes known now."""
        self.eval_metrics, self.given_task_metrics = nn.ModuleList(), nn.ModuleList()

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``val_<metric>`` and ``val_loss``."""
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log ``test_<metric>``, one value for each dataloader."""
        self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> list[str]:
        """Class names, one for each sample of ``x``, ``(x, ...)`` or, for a multi-head, ``(x, y, task)``."""
        x, *rest = batch if isinstance(batch, list | tuple) else (batch,)
        chosen = self(x, rest[1] if len(rest) > 1 else None).argmax(1)
        return [self.class_names[i] for i in chosen.tolist()]

    def configure_optimizers(self) -> Any:
        """Built anew for every fit."""
        optimizer = self.optimizer_factory(self.parameters())
        if self.scheduler_factory is None:
            return optimizer
        scheduler = {"scheduler": self.scheduler_factory(optimizer), "interval": self.scheduler_interval}
        return {"optimizer": optimizer, "lr_scheduler": {**scheduler, "monitor": self.monitor}}


def _head_kind(head: str, layer: str, options: dict[str, Any]) -> Any:
    if layer not in ("linear", "cosine"):
        raise InputError(f"head_layer={layer!r}", "'linear' or 'cosine'", "leave it out for 'linear'")
    if layer == "linear":
        if options:
            raise InputError(f"head_options={options!r} with head_layer='linear'", "none", "set head_layer='cosine'")
        return TaskHeads if head == "separate" else ClassifierHead
    unknown = sorted(options.keys() - {"proxies", "eta", "imprint"})
    if unknown:
        raise InputError(f"head_options {unknown}", "proxies, eta, imprint", "leave the others out")
    if head == "separate":
        raise InputError(
            "head='separate' with head_layer='cosine'",
            "one head for all tasks",
            "use head='multi', or head_layer='linear'",
        )
    return CosineHead


def _adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def _accuracy(num_classes: int) -> Any:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(num_classes=max(num_classes, 2), average="micro", validate_args=False)


def _feature_dim(backbone: nn.Module, input_shape: Sequence[int] | None) -> int:
    given: Any = getattr(backbone, "feature_dim", None)
    if given is not None:
        return int(given)
    if input_shape is None:
        raise InputError("a backbone without feature_dim", "input_shape=(...) to measure it", "pass input_shape")
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, *input_shape))
    backbone.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"backbone output {found!r}", "features of shape (N, d)", "flatten them in forward")
    return features.shape[1]
