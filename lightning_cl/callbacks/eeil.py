"""EEIL: end-to-end incremental learning, with distillation of each old task's outputs."""

from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor, nn

from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.callbacks._teacher_method import TeacherMethod, parts, weight
from lightning_cl.errors import InputError
from lightning_cl.functional.eeil import cross_distillation_loss


class EEIL(TeacherMethod):
    r"""Adds to the loss the soft cross entropy with the old model's outputs, task by task.

    .. math:: L = L_{ce} + \lambda \sum_f L_D^f

    (Castro et al. 2018, ECCV; :func:`~lightning_cl.functional.cross_distillation_loss`, on current and memory samples,
    :math:`\lambda = 1` in the paper.) ``method=eeil`` adds the paper's second stage, balanced fine-tuning; there the
    outputs for the task just learnt are distilled too, from the model at the end of its training. Works with linear
    and cosine heads, in every scenario (outputs of tasks with the same classes count once). Memory samples are mixed
    into the batch.

    State: the memory, and one copy of backbone and head.

    Not supported: modules that are not :class:`~lightning_cl.FineTuningModule`; manual optimization.

    Args:
        memory_size: Samples kept in all, >= 0; None with ``memory_bytes``.
        lambda_: Weight of the distillation.
        temperature: T.
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

    #: read by the stage of balanced fine-tuning
    fine_tunes = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        lambda_: float = 1.0,
        temperature: float = 2.0,
        policy: str = "class_balanced",
        max_per_class: int | None = None,
        batch_size: int | None = None,
        seed: int = 0,
        name: str = "eeil",
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
        if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < 1e9:
            raise InputError(f"temperature={temperature!r}", "a finite number > 0", "leave it out for 2.0")
        self.lambda_, self.temperature = weight("lambda_", lambda_), float(temperature)
        self._trained = Teacher()  # the model when balanced fine-tuning began

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """When balanced fine-tuning begins, the model is a teacher as it is."""
        super().setup(trainer, pl_module, stage)
        # here, because the weights of a checkpoint in the middle of it are loaded later
        if stage == "fit" and self.holds_memory(trainer):
            self._trained.take(parts(pl_module))

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        super().teardown(trainer, pl_module, stage)
        self._trained = Teacher()

    def _watched(self, module: Any) -> dict[str, nn.Module]:
        return {"logits": module.head}

    def _reads_teacher(self) -> bool:
        return bool(self.teacher) and self.lambda_ > 0

    def _loss(self, module: Any, batch: Any, loss: Tensor, now: dict[str, Tensor], old: dict[str, Tensor]) -> Tensor:
        if not old:
            return loss
        *before, current = [tuple(task) for task in module.tasks]
        groups = list(dict.fromkeys(before))
        distilled = cross_distillation_loss(now["logits"], old["logits"], groups, self.temperature)
        if self._trained and current not in groups:
            trained = self._teachers_outputs(self._trained, batch)["logits"]
            distilled = distilled + cross_distillation_loss(now["logits"], trained, [current], self.temperature)
        return loss + self.lambda_ * distilled
