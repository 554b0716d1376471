"""LUCIR: class-incremental learning with a cosine head, kept directions of features, and a margin for old samples."""

import math
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor, nn

from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._teacher_method import TeacherMethod, rows, weight
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.functional.lucir import less_forget_loss, margin_ranking_loss


class LUCIR(TeacherMethod):
    r"""Rebalances old and new classes by geometry: learning a unified classifier incrementally via rebalancing.

    .. math:: L = L_{ce} + \lambda L_{dis}^G + w L_{mr}, \qquad
        \lambda = \lambda_{base} \sqrt{|C_{old}| / |C_{new}|}

    (Hou et al. 2019, CVPR.) The less-forget constraint :math:`L_{dis}^G` holds the directions of the features, on
    current and memory samples (:func:`~lightning_cl.functional.less_forget_loss`); the margin ranking loss
    :math:`L_{mr}` keeps samples of old classes away from the new classes that are nearest to them
    (:func:`~lightning_cl.functional.margin_ranking_loss`); vectors of old classes are fixed. Needs the cosine head
    (``model.head_layer=cosine``, which ``method=lucir`` sets), best with ``imprint`` and with features that may be
    negative. Memory samples are mixed into the batch. The paper's balanced fine-tuning is
    ``method=[lucir,balanced_fine_tuning]``.

    State: the memory, and one copy of backbone and head.

    Not supported: modules that are not :class:`~lightning_cl.FineTuningModule`; tasks without a new class; the margin
    ranking loss where heads are read one task at a time; manual optimization.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        lambda_base: :math:`\lambda_{base}`: 5 on CIFAR-100, 10 on ImageNet in the paper.
        margin_weight: w.
        margin: m.
        n_negatives: K, the new classes that each old sample is compared with.
        fix_old_rows: Whether vectors of old classes stay as they are.
        policy, max_per_class: What is kept, see :class:`~lightning_cl.memory.Memory`.
        batch_size: Memory samples per step (and process); as many as the current batch has by default.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``policy_options``, ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``,
            ``stores``, ``deletion_log``, ``features_fn``, ``losses_fn``: see
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.

    Raises:
        InputError: For values outside these; before training for what cannot work.
    """

    needs_new_classes = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        lambda_base: float = 5.0,
        margin_weight: float = 1.0,
        margin: float = 0.5,
        n_negatives: int = 2,
        fix_old_rows: bool = True,
        policy: str = "class_balanced",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        name: str = "lucir",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(
            memory_size,
            policy=policy,
            max_per_class=max_per_class,
            batch_size=batch_size,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        if not isinstance(n_negatives, int) or n_negatives < 1:
            raise InputError(f"n_negatives={n_negatives!r}", "an integer >= 1", "leave it out for 2")
        self.lambda_base, self.margin_weight = (
            weight("lambda_base", lambda_base),
            weight("margin_weight", margin_weight),
        )
        self.margin, self.n_negatives, self.fix_old_rows = weight("margin", margin), n_negatives, fix_old_rows

    @property
    def lambda_(self) -> float:
        """Weight of the less-forget constraint in this task."""
        if not self.old_classes or not self.new_classes:
            return 0.0
        return self.lambda_base * math.sqrt(len(self.old_classes) / len(self.new_classes))

    def _watched(self, module: Any) -> dict[str, nn.Module]:
        return {"features": module.backbone}

    def _check(self, module: Any) -> None:
        if not hasattr(module.head, "similarities"):
            raise InputError("LUCIR on a linear head", "the cosine head", "set model.head_layer=cosine")
        if module.reads == "task" and self.margin_weight:
            raise InputError(
                f"margin_weight={self.margin_weight!r} with head={module.head_kind!r}",
                "a head that is read as a whole",
                "set margin_weight=0, or scenario class_incremental",
            )

    def _reads_teacher(self) -> bool:
        return bool(self.teacher) and self.lambda_ > 0

    def _loss(self, module: Any, batch: Any, loss: Tensor, now: dict[str, Tensor], old: dict[str, Tensor]) -> Tensor:
        if old:
            loss = loss + self.lambda_ * less_forget_loss(now["features"], old["features"])
        if self.margin_weight and self.old_classes:
            y = split_batch(batch).y
            similarities = module.head.similarities(now["features"])
            of_old, of_new = rows(self.old_classes, y), rows(self.new_classes, y)
            ranking = margin_ranking_loss(similarities, y, of_old, of_new, self.margin, self.n_negatives)
            loss = loss + self.margin_weight * ranking
        return loss

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Vectors of old classes have no gradient; it would count in clipping."""
        gradient = pl_module.head.weight.grad
        if self._fixed and gradient is not None:
            gradient[self.old_classes] = 0

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Put them back: momentum and weight decay move what has no gradient."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._fixed:
            head = pl_module.head.weight
            head[self.old_classes] = self.teacher.tensors["head.weight"].to(head)[self.old_classes]

    @property
    def _fixed(self) -> bool:
        return self.fix_old_rows and bool(self.teacher) and bool(self.old_classes)
