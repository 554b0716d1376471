"""Weight aligning."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.callbacks._classifier import new_rows, require_classifier, seen_rows
from lightning_cl.callbacks._hub import TrainingStepHub
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._share_distillation import ShareDistillation
from lightning_cl.errors import InputError
from lightning_cl.functional.weight_alignment import alignment_factor

log = logging.getLogger(__name__)


class WA(MethodCallback):
    r"""Makes the weight vectors of a learnt task's classes as long as those of the classes before.

    Zhao et al. 2020, arXiv:1911.07053, maintaining discrimination and fairness:

    .. math:: w_j \leftarrow \gamma w_j \text{ for new classes } j, \qquad
        \gamma = \frac{\mathrm{mean}_{i\,old} \|w_i\|}{\mathrm{mean}_{j\,new} \|w_j\|}

    Biases of the head stay. It is the rescaling alone, to be put beside methods that replay: ``[Replay(...), WA()]``,
    ``method=[er,wa]``, ``[derpp,wa]``. With ``distillation=True`` it also trains on
    :math:`\lambda L_d + (1-\lambda) L`, :math:`\lambda = n_{old}/n_{all}`, where L is the training step's loss with
    what the callbacks before it have added, and L_d is distillation on the old classes from the aligned model of the
    task before: the paper's method is ``[Replay(...), WA(distillation=True)]``.

    It assumes that training has made the new rows the longer ones. In small models after little training, or with as
    much replay as new data, the old rows can be longer: gamma, which is logged, is then above 1 and favours the new
    classes more; ``clip_weights=True`` is the paper's remedy where rows have grown long in negative weights.

    In a run the rescaling is a stage between training and consolidation, so that every memory, teacher and importance
    is taken from the aligned model. On a Trainer of your own give it before the other methods; a checkpoint that
    Lightning writes within the fit is not aligned.

    Needs ``module.head``, one layer with ``weight`` (C, d) in which all classes compete, and new classes in every task.

    State: the classes learnt; with distillation one copy of the module's parameters and buffers.

    Not supported: with distillation manual optimization, and optimizers that call their closure more than once per
    step (LBFGS).

    Args:
        distillation: See above.
        temperature: T of the distillation.
        clip_weights: Whether negative weights of the head are set to zero after every step, as the paper proposes, so
            that a vector's length says how large its logits are (for features >= 0).
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these; in ``setup`` and at the start of a fit for what cannot work.
    """

    needs_data = False
    changes_weights = True
    needs_new_classes = True

    def __init__(
        self,
        *,
        distillation: bool = False,
        temperature: float = 2.0,
        clip_weights: bool = False,
        name: str = "wa",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, state_path=state_path)
        if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
            raise InputError(f"temperature={temperature!r}", "a finite number > 0", "temperature=2.0 is the default")
        self.clip_weights = clip_weights
        self.distillation = ShareDistillation(type(self).__name__, float(temperature)) if distillation else None
        self.classes: list[int] = []
        self.aligned = 0
        self._hub: TrainingStepHub | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the earlier model."""
        return self.distillation.teacher.nbytes if self.distillation else 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse modules that cannot work."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        require_classifier(pl_module, type(self).__name__, one_head=True)
        if self.distillation:
            self.distillation.output.attach(pl_module)
            self._hub = TrainingStepHub.attach(pl_module, self._two_losses, name=type(self).__name__)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        if self.distillation:
            self.distillation.output.detach()
        if self._hub is not None:
            self._hub.detach(self._two_losses)
        self._hub = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "fit")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a task that brings nothing new."""
        if not self._resumed_a_finished_fit or self.phase != "consolidated":
            new_rows(pl_module, self.classes, type(self).__name__)
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The logits of the step that follows are wanted."""
        if self.distillation:
            self.distillation.output.arm()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Clip the head's weights, if they are to be."""
        if self._hub is not None and batch is not None:
            self._hub.require_fired()
        if self.clip_weights:
            with torch.no_grad():
                pl_module.head.weight.clamp_(min=0)

    def _two_losses(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        assert self.distillation is not None
        assert self._hub is not None
        module = self._hub.module
        return self.distillation.losses(module, batch, output, self.classes, len(seen_rows(module)))

    def stages(self) -> list[Any]:
        """``align``, between the training and what is taken from the model."""
        from lightning_cl.sequence.state import Stage

        return [Stage("align", lambda state, task: self.align(state.module), after="fit")]

    def align(self, pl_module: Any) -> None:
        """Rescale the rows of the task just learnt. Does nothing the second time, nor in the first task."""
        if self.aligned > self.n_tasks:
            return
        self.aligned = self.n_tasks + 1
        if not self.classes:
            return
        weight = pl_module.head.weight
        old, new = (
            torch.tensor(rows, device=weight.device)
            for rows in (self.classes, new_rows(pl_module, self.classes, type(self).__name__))
        )
        factor = alignment_factor(weight, old, new)
        log.info("%s: weights of the new classes times %.3g", self.state_key, float(factor))
        with torch.no_grad():
            weight[new] *= factor

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self.align(module)
        self.classes = seen_rows(module)
        if self.distillation:
            self.distillation.teacher.take(module)

    def _state(self) -> dict[str, Any]:
        teacher = dict(self.distillation.teacher.tensors) if self.distillation else {}
        return {"classes": list(self.classes), "aligned": self.aligned, "teacher": teacher}

    def _load(self, state: dict[str, Any]) -> None:
        self.classes, self.aligned = list(state["classes"]), state["aligned"]
        if self.distillation:
            self.distillation.teacher.tensors = dict(state["teacher"])
