"""Bias correction."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._bic_memory import REFUSED, held_out_memory, held_out_sizes
from lightning_cl.callbacks._classifier import features_and_logits, no_new_classes, require_classifier
from lightning_cl.callbacks._held_out import Skipping, held_out_positions, without
from lightning_cl.callbacks._memory_options import MemoryOptions, refuse_options
from lightning_cl.callbacks._mixed_memory import MixedMemory, picked
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.callbacks._plain_loader import plain_of
from lightning_cl.callbacks._share_distillation import ShareDistillation
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, leaves
from lightning_cl.functional.bias_fit import fit_bias
from lightning_cl.functional.seeding import derive_seed, generator

log = logging.getLogger(__name__)
RULE = "bias_correction"
_NOBODY = torch.empty(0, dtype=torch.long)


class BiC(MixedMemory):
    r"""Replay and distillation, then two parameters that undo the bias towards new classes (Wu et al. 2019).

    arXiv:1905.13260. Large-scale incremental learning in two steps:

    1. training on current and stored samples in one batch with :math:`\lambda L_d + (1-\lambda) L`,
       :math:`\lambda = n_{old}/(n_{old}+n_{new})`; L is the training step's loss, L_d distillation on the old classes
       from the (corrected) model of the task before;
    2. the stage ``fit_bias``: on samples that no training has seen, as many of every class, alpha and beta of
       :math:`q_k = \alpha o_k + \beta` for the new classes k (old ones: :math:`q_k = o_k`) are fitted by cross-entropy.
       The module predicts by q until the next task is learnt, whose model takes it from its teacher.

    A share of the memory, ``validation_fraction``, holds samples for step 2. Those of the new classes are taken out of
    the task's training loader before it starts, at random by (seed, task), the same in every process and after every
    resume; they are never trained on, then or later. That costs one pass over the data to read the labels, and needs a
    DataModule of ours or a ``DataLoader`` with the default samplers. Give the task's data to another memory on the
    Trainer (``method=[er,bic]``), and that one will replay them.

    Step 2 has a unique solution, which is computed (see :func:`~lightning_cl.functional.fit_bias`); the paper runs SGD.

    Needs a :class:`~lightning_cl.FineTuningModule` (or ``backbone``, ``head`` and ``set_rule``) with one head for all
    classes, batches ``(x, y)``, and new classes in every task. A checkpoint that Lightning writes within a fit holds no
    correction; those of a run (``model.ckpt``) do.

    State: both memories, the model after the last task (one copy of its parameters and buffers), the classes learnt,
    and the present task's held-out samples.

    Not supported: manual optimization; optimizers that call their closure more than once per step (LBFGS).

    Args:
        memory_size: Samples in all, those for step 2 included; 0 leaves the method out.
        max_per_class: No class holds more, those for step 2 included.
        validation_fraction: Share of the memory for step 2, in (0, 1).
        temperature: T of the distillation.
        ridge: See :func:`~lightning_cl.functional.fit_bias`.
        batch_size: Stored samples per step (and process): ``"union"`` (the paper: they and the current samples are one
            training set), a number, or None for as many as the current batch has.
        label_fn: ``batch -> labels (N,)``, where :func:`~lightning_cl.memory.find_labels` finds none.
        seed: Seed of what is stored, held out and drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``storage``, ``path``, ``keep_states``: see :class:`~lightning_cl.memory.Memory`; the samples for
            step 2 have the folder ``validation`` in ``path``. Other options are refused by name.

    Raises:
        InputError: For values outside these; in ``setup`` and before training for what cannot work.
    """

    needs_labels = True
    changes_weights = True
    needs_new_classes = True
    order = -5

    def __init__(
        self,
        memory_size: int,
        *,
        max_per_class: int | None = None,
        validation_fraction: float = 0.1,
        temperature: float = 2.0,
        ridge: float = 1e-3,
        batch_size: int | Literal["union"] | None = "union",
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "bic",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        refuse_options(type(self).__name__, memory, REFUSED)
        for argument, value in (("temperature", temperature), ("ridge", ridge)):
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise InputError(f"{argument}={value!r}", "a finite number > 0", f"leave {argument} out")
        held, held_per_class = held_out_sizes(memory_size, max_per_class, validation_fraction)
        super().__init__(
            memory_size - held,
            policy="class_balanced",
            max_per_class=None if max_per_class is None else max_per_class - (held_per_class or 0),
            batch_size=batch_size,
            label_fn=label_fn,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        self.seed, self.ridge, self.held_per_class = seed, float(ridge), held_per_class
        self.validation = held_out_memory(held, held_per_class, derive_seed(seed, name, "validation"), memory)
        self.distillation = ShareDistillation(type(self).__name__, float(temperature))
        self.classes: list[int] = []
        self.corrected = 0
        self._source: InstancePatch | None = None
        # until the task is consolidated, which may be after its fit
        self._full: Any = None
        # of the present task: its classes, where its held-out samples stand, and what they are
        self.new: list[int] = []
        self.positions = self.held_labels = _NOBODY
        self.held: dict[str, Leaf] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of both memories and of the earlier model."""
        return super().nbytes + self.validation.nbytes + self.distillation.teacher.nbytes

    def belongs_to(self, run_dir: Path) -> None:
        """Tell both memories where their states are kept."""
        super().belongs_to(run_dir)
        self.validation.belongs_to(run_dir, f"{self.state_key}.validation")

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse modules that cannot work, set the rule for prediction, and stand where the training loader comes."""
        if stage == "fit" and not self.off:
            require_classifier(pl_module, type(self).__name__, RULE, one_head=True)
            self.distillation.output.attach(pl_module)
            if self._source is None:
                self._source = InstancePatch(_compat.train_source(trainer), "dataloader", self._training_loader)
        super().setup(trainer, pl_module, stage)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and loaders as they were, but for the rule."""
        self.distillation.output.detach()
        if self._source is not None:
            self._source.remove()
        self._source = None
        super().teardown(trainer, pl_module, stage)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Until its bias is fitted, the model that learns the next task predicts by its logits."""
        if not self.off:
            pl_module.set_rule(RULE).reset()
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The logits of the step that follows are wanted."""
        self.distillation.output.arm()

    def _listener(self) -> Any:
        return None if self.off else self._two_losses

    def _two_losses(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        n_all = len(self.classes) + len(self.new)
        return self.distillation.losses(self._trainer.lightning_module, batch, output, self.classes, n_all)

    # what is held out -----------------------------------------------------------------------------------------------

    def _training_loader(self) -> Any:
        """The training loader without the samples held out, which are read and kept."""
        assert self._source is not None
        loader = self._source.original()
        self._full = plain_of(loader)
        trainer = self._trainer
        batches = [trainer, trainer.lightning_module, self._full]
        labels = torch.cat([self._labels(batch) for batch, _ in self._task_batches(*batches)])
        new = [c for c in labels.unique().tolist() if c not in self.classes]
        if not new:
            # a training that had been consolidated is not trained on again
            if self.phase == "consolidated" and self.n_tasks > 0 and self._nothing_to_train(trainer):
                return loader
            no_new_classes(type(self).__name__)
        draws = generator(self.seed, self.name, "held out", self.n_tasks)
        positions = held_out_positions(labels, new, self._held_share(len(self.classes) + len(new)), draws)
        self.new, self.positions, self.held, self.held_labels = new, positions, {}, _NOBODY
        if len(positions):  # none where every class has one sample
            held = picked(self._task_batches(*batches), positions)
            self.held, self.held_labels = leaves(held), self._labels(held)
        return without(loader, positions, type(self).__name__)

    def _nothing_to_train(self, trainer: Any) -> bool:
        return bool(trainer.fit_loop.done)

    def refuse_tasks(self, tasks: Sequence[Any]) -> None:
        """Refuse tasks without new classes, and more classes than samples to be held out."""
        if self.off:
            return
        super().refuse_tasks(tasks)
        self._held_share(len({c for task in tasks for c in task.class_indices}))

    def _held_share(self, n_classes: int) -> int:
        share = self.validation.size // n_classes
        if share < 1:
            raise InputError(
                f"{self.validation.size} samples held out by {type(self).__name__} for {n_classes} classes",
                "one of every class",
                "set a larger memory_size or validation_fraction",
            )
        return share if self.held_per_class is None else min(share, self.held_per_class)

    def _forget_the_task(self) -> None:
        self.new, self.held, self._full = [], {}, None
        self.positions = self.held_labels = _NOBODY

    # the end of a task ----------------------------------------------------------------------------------------------

    def stages(self) -> list[Any]:
        """``fit_bias``, between the training and what is taken from the model."""
        from lightning_cl.sequence.state import Stage

        def run(state: Any, task: Any) -> None:
            state.module.to(state.trainer().strategy.root_device)
            self.fit_bias(state.module)

        return [] if self.off else [Stage("fit_bias", run, after="fit")]

    def fit_bias(self, pl_module: Any, trainer: Any = None) -> None:
        """Fit the two parameters of the task just learnt. Does nothing the second time, nor in the first task."""
        if self.corrected > self.n_tasks:
            return
        self.corrected = self.n_tasks + 1
        if not self.held:
            return
        self.validation.add(self.held, self.held_labels)
        if not self.classes:
            return
        rows, outputs = torch.tensor([*self.classes, *self.new]), []
        for slots in torch.arange(len(self.validation)).split(256):
            found = self.validation.at(slots)
            batch = (found["0"], self.validation.labels[slots]) if "0" in found else found  # type: ignore[index]
            outputs.append(features_and_logits(trainer, pl_module, batch, type(self).__name__, stored=True)[1].cpu())
        labels = self.validation.labels
        assert labels is not None
        places = (labels[:, None] == rows).long().argmax(1)
        is_new = torch.arange(len(rows)) >= len(self.classes)
        scale, shift = fit_bias(torch.cat(outputs)[:, rows], places, is_new, ridge=self.ridge)
        log.info("%s: logits of the new classes times %.3g, plus %.3g", self.state_key, scale, shift)
        pl_module.set_rule(RULE).correct(self.new, scale, shift)

    def consolidate(self, trainer: Any, pl_module: Any, dataloader: Any = None) -> None:
        """End the task: fit its bias if that is not done, fill the memory, keep the model."""
        # positions are counted in the training loader's data
        super().consolidate(trainer, pl_module, self._full if dataloader is None else dataloader)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self.off:
            return
        self.fit_bias(module, trainer)
        super()._consolidate(trainer, module, Skipping(loader, self.positions))
        self.classes += self.new
        self._forget_the_task()
        self.distillation.teacher.take(module)

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "validation": self.validation.state_dict(),
            "teacher": dict(self.distillation.teacher.tensors),
            "classes": list(self.classes),
            "corrected": self.corrected,
            "new": list(self.new),
            "positions": self.positions,
            "held": dict(self.held),
            "held_labels": self.held_labels,
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.validation.load_state_dict(state["validation"])
        self.distillation.teacher.tensors = dict(state["teacher"])
        self.classes, self.corrected, self.new = list(state["classes"]), state["corrected"], list(state["new"])
        self.positions, self.held = state["positions"], dict(state["held"])
        self.held_labels = state["held_labels"]
