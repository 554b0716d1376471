"""The LightningModule that is fine-tuned on one task after another."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl._compat_fsdp2 import make_whole
from lightning_cl.errors import InputError
from lightning_cl.finetuning._active_classes import ActiveClasses, rows_with
from lightning_cl.finetuning._adapter_record import BASE_KEY, check_base
from lightning_cl.finetuning._evaluation import EvaluationSteps
from lightning_cl.finetuning._imprinting import features_of
from lightning_cl.finetuning._optimizers import check_group_options, make_optimizers
from lightning_cl.finetuning._parts import adam, feature_dim, head_class, make_backbone, micro_accuracy
from lightning_cl.finetuning._sharding import shard
from lightning_cl.finetuning.adapter_files import adopt
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.finetuning.rules import make_rule


class FineTuningModule(EvaluationSteps):
    """A backbone and a classifier head that learns the classes of each task it is fitted on.

    Batches are ``(x, y)``, ``(x, y, task)``, or mappings as of Hugging Face (``input_ids``, ``attention_mask``, ...,
    ``labels``, perhaps ``task``), whose inputs go to the backbone as a mapping; see
    :func:`~lightning_cl.finetuning.batch_parts.split_batch`. In ``setup("fit")`` the module reads ``seen_tasks`` (or
    ``task``) from the DataModule and adds the classes that are new, before optimizers are built and before a
    checkpoint is restored. Row i of the head is class ``class_names[i]``, and label i of the data has to be that class.
    Checkpoints hold plain values only, so ``FineTuningModule.load_from_checkpoint(path)`` rebuilds a grown model from
    the file alone when the backbone is one of ours; another one is given again:
    ``load_from_checkpoint(path, backbone=...)``.

    Evaluation and prediction go by the largest logit, or by the rule that a method has set by :meth:`set_rule`
    (nearest mean, bias correction). A rule is part of the module: its state is in the ``state_dict``, its name in the
    hyperparameters, and it grows with the head. So are adapters (:func:`~lightning_cl.finetuning.add_adapters`).

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
        head_layer: What the head computes: ``"linear"``; ``"mlp"``, a :class:`~lightning_cl.finetuning.MLPHead`; or
            ``"cosine"``, a :class:`~lightning_cl.finetuning.CosineHead` (the last two not for separate heads).
        head_options: The MLP head's ``hidden`` and ``dropout``, or the cosine head's ``proxies``, ``eta`` and
            ``imprint``, which starts the rows of classes that come after the first task where their features lie, read
            from the DataModule's ``importance_dataloader()``.
        active_classes: Logits in the training loss: classes ``"seen"`` so far, those of the sample's own ``"task"``,
            or ``"all"`` rows. By default ``"task"`` for a multi-head or separate heads, else ``"seen"``. Evaluation
            reads the task's own for these, else the classes seen.
        optimizer: ``params -> Optimizer``; Adam with lr 1e-3 by default.
        parameter_groups: Options of :func:`~lightning_cl.parameter_groups` (``layer_decay``, ``multipliers``,
            ``no_decay``, ``trainable_only``), whose rates and decay are then relative to the optimizer's; None, or
            empty, for one group with all parameters.
        scheduler: ``optimizer -> LRScheduler``, or None; if it has an argument ``total_steps`` without a value, it is
            given the number of its steps in the fit.
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
        head_layer: Literal["linear", "mlp", "cosine"] = "linear",
        head_options: dict[str, Any] | None = None,
        active_classes: Literal["seen", "task", "all"] | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        parameter_groups: dict[str, Any] | None = None,
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
        if active_classes not in (None, "seen", "task", "all"):
            raise InputError(f"active_classes={active_classes!r}", "'seen', 'task' or 'all'", "leave it out")
        self.backbone = backbone = make_backbone(backbone, input_shape)
        kind = head_class(head, head_layer, options := dict(head_options or {}))
        self.head: Any = kind(feature_dim(backbone, input_shape), (), seed, **options)
        self.head_kind, self.reads = head, "task" if head in ("multi", "separate") else "seen"
        self.active_classes = active_classes or self.reads
        self.optimizer_factory, self.scheduler_factory = optimizer or adam, scheduler or None
        self.parameter_group_options = check_group_options(parameter_groups)
        self.scheduler_interval, self.monitor = scheduler_interval, monitor
        self.loss = loss or nn.functional.cross_entropy
        self.metric_factory, self.metric_name = metric or micro_accuracy, metric_name
        self.test_given_task = test_given_task
        self.tasks: list[list[int]] = []
        self.rule: Any = None
        self._to_imprint: list[int] = []
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
                "adapters": None,
            },
            logger=False,
        )
        self._forget_metrics()
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
        return self._active.rows

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
        task: Any = getattr(datamodule, "task", None)
        before = self.tasks
        if hasattr(task, "class_indices"):
            tasks = getattr(datamodule, "seen_tasks", None) or [task]
            rows = rows_with(self.class_names, tasks, fixed=self.head_kind == "fixed")
            # a task that comes alone stands behind those learnt before
            known = before[: task.id] if len(tasks) == 1 else []
            self.learn_classes(rows, [*known, *(task.class_indices for task in tasks)])
        if before and getattr(self.head, "imprint", False):
            arrived = {row for task in self.tasks[len(before) :] for row in task}
            self._to_imprint = sorted(arrived.difference(*before))
        if not self.class_names:
            raise InputError(
                "a head without classes", "class_names, or a task's data", "pass class_names=['cat', 'dog']"
            )

    def configure_model(self) -> None:
        """With ``ModelParallelStrategy``, shard backbone and head over the processes; nothing otherwise."""
        if self._trainer is not None:
            shard(self)

    def learn_classes(self, class_names: Sequence[str], tasks: Sequence[Sequence[int]] = ()) -> None:
        """Add rows for the names that are new, and set which rows belong to which task so far."""
        rows = list(dict.fromkeys([*self.class_names, *class_names]))
        if rows != self.class_names:
            make_whole(self)  # what grows is sharded anew
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
        self._active = ActiveClasses(self.tasks, len(self.class_names))
        if self.rule is not None:
            self.rule.resize(len(self.class_names))

    def on_fit_start(self) -> None:
        """Imprint the rows of classes that are new; a fit that goes on from a checkpoint has them from there."""
        rows, self._to_imprint = self._to_imprint, []
        if rows:
            features = features_of(self, rows)
            self.head.imprint_rows({self.class_names[row]: found for row, found in features.items()})

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Grow to the checkpoint's classes before its weights are loaded."""
        self._to_imprint = []
        saved = checkpoint.get(self.CHECKPOINT_HYPER_PARAMS_KEY, {})
        if saved.get("rule") != self.hparams["rule"]:
            self.set_rule(None)
            self.set_rule(saved.get("rule"))
        self.learn_classes(saved.get("class_names", []), saved.get("tasks", []))
        adopt(self, saved.get("adapters"))
        check_base(self, checkpoint.get(BASE_KEY))

    def forward(self, x: Any, task: Tensor | None = None) -> Tensor:
        """Logits (N, C) of inputs (N, ...), or the rule's scores; classes that evaluation does not read are masked.

        A mapping may hold labels and task ids too, as a batch does.
        """
        if isinstance(x, Mapping):
            x, _, own = split_batch(x)
            task = own if task is None else task
        features = self.backbone(x)
        return self._active.mask(self._scores(self.head(features), features), self.reads, task=task)

    def _scores(self, logits: Tensor, features: Tensor) -> Tensor:
        """What the rule makes of the logits; the logits where there is none, or none yet for a class seen."""
        if self.rule is None or not self.rule.covers(self._active.seen.to(logits.device)):
            return logits
        return self.rule(logits, features)

    def all_logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits of every row, none masked, and their targets: what distillation and logit replay read."""
        x, y, _ = split_batch(batch)
        return self.head(self.backbone(x)), y

    @property
    def logit_groups(self) -> list[list[int]]:
        """Rows that share a softmax in evaluation: those of each task so far, or one group of all that is trained."""
        if self.reads == "task":
            return [list(task) for task in self.tasks]
        return [list(range(len(self.class_names))) if self.active_classes == "all" else self.seen_classes]

    def importance_logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits of the training loss and their targets: what the Fisher information is taken of."""
        logits, y = self.all_logits(batch)
        return self.training_logits(logits, batch), y

    def training_logits(self, logits: Tensor, batch: Any) -> Tensor:
        """Logits (N, C) of a batch as the training loss reads them: those of inactive classes are masked."""
        _, y, task = split_batch(batch)
        return self._active.mask(logits, self.active_classes, y=y, task=task)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Mean loss of the batch over the active classes."""
        logits, y = self.importance_logits(batch)
        loss = self.loss(logits, y)
        # logging costs more than a small model's step, so only on the steps that loggers read
        trainer: Any = self._trainer
        if trainer is not None and trainer.global_step % trainer.log_every_n_steps == 0:
            self.log("train_loss", loss.detach(), prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        """Built anew for every fit."""
        return make_optimizers(self)
