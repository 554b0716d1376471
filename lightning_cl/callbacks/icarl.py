"""Incremental classifier and representation learning."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl.callbacks._classifier import (
    features_and_logits,
    inputs_of,
    new_rows,
    require_classifier,
    seen_rows,
)
from lightning_cl.callbacks._head_output import HeadOutput
from lightning_cl.callbacks._hub import loss_of, with_loss
from lightning_cl.callbacks._memory_options import FIXED_POLICY, MemoryOptions, refuse_options
from lightning_cl.callbacks._mixed_memory import MixedMemory, by_class, picked
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, leaves, rebuild, select
from lightning_cl.functional.binary_distillation import binary_distillation_loss
from lightning_cl.functional.herding import herding_order
from lightning_cl.functional.nearest_mean import class_means
from lightning_cl.memory import Memory, find_labels

RULE = "nearest_mean"
#: Its exemplars are chosen anew after each task, by herding on the features that classify.
REFUSED = {
    **FIXED_POLICY,
    "memory_bytes": "set memory_size, of which every class has its share",
    "max_age": "leave it out; herding keeps the best exemplars, whatever their age",
    "storage": "leave storage and path out; its exemplars are in RAM",
    "path": "leave storage and path out; its exemplars are in RAM",
    "keep_states": "leave it out; its exemplars are in RAM",
    "stores": "leave it out; it stores samples",
    "id_fn": "name the ids in the batch: an integer leaf named id, sample_id or index",
    "deletion_log": "leave it out; delete checkpoints that are older than a deletion",
}


class ICaRL(MixedMemory):
    r"""Exemplars by herding, binary distillation, prediction by the nearest mean (Rebuffi et al. 2017).

    arXiv:1611.07725. The training step's loss is replaced, in the first task too, by a binary cross-entropy over all
    active classes, on current samples and exemplars in one batch:

    .. math:: L = \frac{1}{N}\sum_n \Big[ \sum_{c\,new} \mathrm{BCE}(\sigma(z_{nc}), [y_n = c])
        + \sum_{c\,old} \mathrm{BCE}(\sigma(z_{nc}), \sigma(z^{old}_{nc} / T)) \Big]

    :math:`z^{old}` are the logits of the model after the task before. After each task every class keeps its best
    ``memory_size // classes`` exemplars: herding orders them by how well their mean is the class's mean of normalised
    features, and a smaller share drops the last. The module then predicts the class whose exemplars' mean is nearest.
    While a task is learnt (validation within a fit) its logits decide.

    Needs a :class:`~lightning_cl.FineTuningModule`, or a module with ``backbone``, ``head`` and ``set_rule``, batches
    ``(x, y)`` or ``(x, y, task)``, and new classes in every task; a class that comes again keeps its first exemplars.
    With several heads the mean is sought among the task's own classes. Of other methods on the Trainer, those that add
    a loss keep it. A checkpoint that Lightning writes within a fit holds no means of that fit's classes; those of a run
    (``model.ckpt``) do.

    State: the exemplars, the model after the last task (one copy of its parameters and buffers), the classes learnt.

    Not supported: manual optimization; optimizers that call their closure more than once per step (LBFGS).

    Args:
        memory_size: Exemplars in all, >= the number of classes; 0 leaves the method out.
        max_per_class: No class keeps more, even while there is room.
        batch_size: Exemplars per step (and process): ``"union"`` (the paper: they and the current samples are one
            training set), a number, or None for as many as the current batch has.
        temperature: T; 1 in the paper.
        label_fn: ``batch -> labels (N,)``, where :func:`~lightning_cl.memory.find_labels` finds none.
        seed: Seed of the exemplars drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: The options that other memories have are refused by name.

    Raises:
        InputError: For values outside these; in ``setup`` and at the start of a fit for what cannot work.
    """

    needs_labels = True
    needs_new_classes = True
    # its loss takes the place of the module's: what others add comes after
    order = -10

    def __init__(
        self,
        memory_size: int,
        *,
        max_per_class: int | None = None,
        batch_size: int | Literal["union"] | None = "union",
        temperature: float = 1.0,
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "icarl",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        refuse_options(type(self).__name__, memory, REFUSED)
        super().__init__(
            memory_size,
            batch_size=batch_size,
            label_fn=label_fn,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
        )
        if max_per_class is not None and (not isinstance(max_per_class, int) or max_per_class < 1):
            raise InputError(f"max_per_class={max_per_class!r}", "an integer >= 1, or None", "leave it out")
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise InputError(f"temperature={temperature!r}", "a finite number > 0", "temperature=1.0 is the default")
        self.max_per_class, self.temperature = max_per_class, float(temperature)
        self.classes: list[int] = []
        self.teacher, self._output = Teacher(), HeadOutput()

    @property
    def nbytes(self) -> int:
        """Bytes of the exemplars and of the earlier model."""
        return super().nbytes + self.teacher.nbytes

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse modules that cannot work, and set the rule for prediction."""
        if stage == "fit" and not self.off:
            require_classifier(pl_module, type(self).__name__, RULE)
            self._output.attach(pl_module)
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was, but for its rule."""
        self._output.detach()
        super().teardown(trainer, pl_module, stage)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a task that brings nothing new, or more classes than exemplars."""
        if not self.off:
            pl_module.set_rule(RULE)
        if not self.off and (not self._resumed_a_finished_fit or self.phase != "consolidated"):
            new_rows(pl_module, self.classes, type(self).__name__)
            self._share(len(seen_rows(pl_module)))
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The logits of the step that follows are wanted."""
        self._output.arm()

    def _listener(self) -> Any:
        return None if self.off else self._binary_loss

    def _binary_loss(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        if loss_of(output) is None:
            return output
        module, name = self._trainer.lightning_module, type(self).__name__
        logits = self._output.take(module, name)
        active = module.training_logits(logits, batch) if hasattr(module, "training_logits") else logits
        labels = find_labels(batch, self.label_fn)
        assert labels is not None  # of the first batch, which was looked at
        if not self.teacher:
            return with_loss(output, binary_distillation_loss(active, labels))
        old = torch.tensor(self.classes, device=logits.device)
        with self.teacher.in_place_of(module):
            targets = module.head(module.backbone(inputs_of(batch, name)))[:, old]
        # old classes learn from every sample, whichever classes its label competes with
        mixed = active.index_copy(1, old, logits[:, old].to(active.dtype))
        return with_loss(output, binary_distillation_loss(mixed, labels, targets, old, self.temperature))

    def refuse_tasks(self, tasks: Sequence[Any]) -> None:
        """Refuse tasks without new classes, and more classes than exemplars."""
        if self.off:
            return
        super().refuse_tasks(tasks)
        self._share(len({c for task in tasks for c in task.class_indices}))

    def _share(self, n_classes: int) -> int:
        share = self.memory.size // n_classes
        if share < 1:
            raise InputError(
                f"memory_size={self.memory.size} of {type(self).__name__} for {n_classes} classes",
                "an exemplar for every class",
                f"set memory_size={20 * n_classes}",
            )
        return share if self.max_per_class is None else min(share, self.max_per_class)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self.off:
            return
        features, labels, template = [], [], None
        for batch, stored in self._task_batches(trainer, module, loader):
            template = stored
            features.append(features_and_logits(trainer, module, batch, type(self).__name__)[0].cpu())
            labels.append(self._labels(batch))
        members = {c: at for c, at in by_class(torch.cat(labels)).items() if c not in self.classes}
        normalised = torch.nn.functional.normalize(torch.cat(features), dim=1)
        self.classes += list(members)
        share = self._share(len(self.classes))
        best = [at[herding_order(normalised[at], min(share, len(at)))] for at in members.values()]
        kept = self._first(share)
        if best:
            # the samples are read again, so that the task's data need not fit into memory
            batch = picked(self._task_batches(trainer, module, loader), torch.cat(best))
            kept.append((leaves(batch), self._labels(batch)))
        self._hold(kept)
        self._set_means(trainer, module, template)
        self.teacher.take(module)

    def _first(self, share: int) -> list[tuple[dict[str, Leaf], Tensor]]:
        """The first exemplars of every class, in the order of herding, no more than its share."""
        labels = self.memory.labels
        if labels is None:
            return []
        kept = torch.cat([at[:share] for at in by_class(labels).values()])
        return [(self.memory.at(kept), labels[kept])]

    def _hold(self, exemplars: list[tuple[dict[str, Leaf], Tensor]]) -> None:
        """Fill the memory anew; a reservoir that has room appends, so that herding's order is that of the slots."""
        before = self.memory.state_dict()
        self.memory = Memory(self.memory.size)
        for batch, labels in exemplars:
            self.memory.add(batch, labels)
        # what was deleted stays deleted
        kept = ("draws", "deleted") if len(before["deleted"]["hashes"]) else ("draws",)
        self.memory.load_state_dict({**self.memory.state_dict(), **{name: before[name] for name in kept}})

    def _set_means(self, trainer: Any, module: Any, template: Any) -> None:
        features = []
        for slots in torch.arange(len(self.memory)).split(256):
            # their structure is that of the task's batches
            batch = rebuild(select(template, slice(0, 1)), self.memory.at(slots))
            features.append(features_and_logits(trainer, module, batch, type(self).__name__, stored=True)[0].cpu())
        labels = self.memory.labels
        assert labels is not None
        n = len(getattr(module, "class_names", ())) or module.head.out_features
        module.set_rule(RULE).set_means(class_means(torch.cat(features), labels, n))

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "classes": list(self.classes), "teacher": dict(self.teacher.tensors)}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.classes, self.teacher.tensors = list(state["classes"]), dict(state["teacher"])
