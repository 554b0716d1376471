"""Learning without Forgetting."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.callbacks._class_rows import BEHIND, class_rows, refuse_other_rows
from lightning_cl.callbacks._hub import TrainingStepHub, loss_of, with_loss
from lightning_cl.callbacks._loss_weights import loss_weights
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._outputs import LogitsFn, StepOutputs
from lightning_cl.callbacks._same_draws import SameDraws
from lightning_cl.callbacks._teacher import Teacher
from lightning_cl.errors import InputError
from lightning_cl.functional.distillation import distillation_loss

INACTIVE = -6e4  # below this a logit stands for a class that was masked


class LwF(MethodCallback):
    r"""Keeps the model's answers on the current data as they were after the task before: distillation.

    .. math:: L = w_c L_{current} + w_d \, \alpha D, \quad
        D = \frac{1}{H} \sum_{h=1}^{H} -\frac{1}{N} \sum_n \sum_{c \in C_h} p_{nc} \log q_{nc}

    with the softmax at temperature T of the teacher's logits (p) and of the model's (q) over the classes :math:`C_h`
    that the teacher knew: one term for each old task's head, or one for a shared head. Li & Hoiem 2017,
    arXiv:1606.09282. The teacher is the model at the end of the task before, in eval mode; it is kept outside of the
    module. No sample is stored. It helps where tasks have heads of their own, little where one head learns new classes
    (about 20 % on class-incremental Split MNIST): use a method with a memory there.

    How others weigh the two: Li & Hoiem, and van de Ven et al. 2022 (doi:10.1038/s42256-022-00568-3), add them;
    the latter count D once for each old task with separate heads and in the domain-incremental scenario
    (``reduction="sum"``). van de Ven & Tolias 2019 (arXiv:1904.07734): ``weights="tasks"``, with ``softmax="all"`` in
    the class-incremental scenario. None of them multiplies by :math:`T^2`, as Hinton et al. 2015 do.

    The logits of the user's own training step are used; one forward pass of the teacher is added, on the batch as the
    step has augmented it (by the global generators). See
    :class:`~lightning_cl.callbacks._outputs.StepOutputs` for how they are found in modules that are not ours.

    State: one copy of the module's parameters and buffers, and the classes that the teacher knew.

    Not supported: manual optimization.

    Args:
        alpha: Weight of the distillation, >= 0; 0 does nothing.
        temperature: T > 0.
        scale_by_T2: Multiply D by :math:`T^2`.
        weights: ``"sum"``: :math:`w_c = w_d = 1`. ``"tasks"``: :math:`1/k` and :math:`1 - 1/k`, where k counts the
            tasks so far, the current one included.
        reduction: ``"mean"`` over the old tasks' terms, as above, or ``"sum"``; a shared head's one term is then
            counted once for each old task.
        softmax: The model's softmax is over the ``"old"`` classes, or over ``"all"`` that are trained, with the
            target 0 for new ones.
        heads: Columns of the logits of each task's head, in the order of the tasks, for a module that is not ours and
            whose logits (by ``logits_fn``) stand side by side; by default the module's own ``logit_groups``, or one
            shared head.
        logits_fn: ``(module, batch) -> (logits, labels)``, where the step does not show them.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these; on the first step if no logits are found.

    Example:
        >>> LwF(alpha=1.0, temperature=2.0).n_tasks
        0
    """

    needs_data = False
    supports_sharding = True

    def __init__(
        self,
        alpha: float = 1.0,
        *,
        temperature: float = 2.0,
        scale_by_T2: bool = False,
        weights: Literal["sum", "tasks"] = "sum",
        reduction: Literal["mean", "sum"] = "mean",
        softmax: Literal["old", "all"] = "old",
        heads: Sequence[Sequence[int]] | None = None,
        logits_fn: LogitsFn | None = None,
        name: str = "lwf",
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, select=select, state_path=state_path)
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha={alpha!r}", "a finite number >= 0", "alpha=1.0 is the default")
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature={temperature!r}", "a finite number > 0", "temperature=2.0 is the default")
        options = {"weights": (weights, "sum", "tasks"), "reduction": (reduction, "mean", "sum")}
        for argument, (given, *allowed) in (options | {"softmax": (softmax, "old", "all")}).items():
            if given not in allowed:
                raise InputError(f"{argument}={given!r}", " or ".join(map(repr, allowed)), "leave it out")
        self.alpha, self.temperature, self.scale_by_T2 = alpha, temperature, scale_by_T2
        self.weights, self.reduction, self.softmax, self.heads = weights, reduction, softmax, heads
        self.outputs = StepOutputs("LwF", logits_fn)
        self.teacher = Teacher()
        self.groups: list[list[int]] = []
        self._rows: dict[str, list[str]] = {}  # class names of the teacher's classifier, if it knows them
        self._module: Any = None
        self._hub: TrainingStepHub | None = None
        self._forget_the_fit()

    @property
    def nbytes(self) -> int:
        """Bytes of the teacher."""
        return self.teacher.nbytes

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the current loss and of alpha times the distillation, now."""
        return (1.0, 1.0) if self.weights == "sum" else loss_weights(self.weights, self.n_tasks)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand around the training step."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._forget_the_fit()
        self._module = pl_module
        self._hub = TrainingStepHub.attach(pl_module, self._distil, name="LwF", around=self._around)
        self.outputs.attach(pl_module)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse a classifier that has other classes where the teacher had its own."""
        refuse_other_rows(pl_module, self._rows, self._rows, f"{BEHIND}, or start with a new LwF")
        super().on_fit_start(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        self.outputs.detach()
        if self._hub is not None:
            self._hub.detach(self._distil)
        self._module = self._hub = None
        self._forget_the_fit()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the step came by."""
        if self._hub is not None and batch is not None:
            self._hub.require_fired()

    def _forget_the_fit(self) -> None:
        self._tried, self._draws = False, SameDraws()
        self._columns: list[tuple[Tensor, Tensor]] = []

    @property
    def _distils(self) -> bool:
        return bool(self.teacher) and self.alpha > 0

    def _around(self) -> AbstractContextManager[None]:
        if self._distils:
            self._draws.note(next(self._module.parameters()).device)
        # the first step shows whether logits can be found, in the first task already
        return self.outputs.recording() if self._distils or not self._tried else nullcontext()

    def _distil(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        current = loss_of(output)
        if current is None or (self._tried and not self._distils):
            return output
        self._tried = True
        logits, _ = self.outputs.current(self._module, batch)
        if not self._distils:
            return output
        # a step that augments its batch shows the same to both
        with self._draws.again(), self.teacher.in_place_of(self._module):
            before = self.outputs.logits_only(call, self._module, batch)
        terms = [
            distillation_loss(logits[:, now], before[:, then], self.temperature, scale_by_T2=self.scale_by_T2)
            for now, then in self._columns or self._find_columns(logits, before)
        ]
        distillation = torch.stack(terms).mean() * (self.n_tasks if self.reduction == "sum" else 1)
        weights = self.loss_weights
        return with_loss(output, weights[0] * current + weights[1] * self.alpha * distillation)

    def _find_columns(self, logits: Tensor, before: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For each term, the model's columns and the teacher's, which come first among them."""
        groups = [list(group) for group in (self.heads or [])[: self.n_tasks]] or self.groups
        if not groups:
            axes = [axis for axis in range(before.dim()) if axis != 1]
            groups = [(before > INACTIVE).all(axes[0]).reshape(before.shape[1], -1).all(1).nonzero().flatten().tolist()]
        trained = [c for group in getattr(self._module, "logit_groups", []) for c in group] or range(logits.shape[1])
        width = min(logits.shape[1], before.shape[1])
        for group in groups:
            if not group or not 0 <= min(group) <= max(group) < width:
                raise InputError(
                    f"classes {group} of an old task for a teacher of {before.shape[1]} and a model of "
                    f"{logits.shape[1]} logits",
                    "columns that both have",
                    "give heads=[[columns of task 0], ...], and logits_fn if the step computes one head only",
                )
            new = [c for c in trained if c not in group] if self.softmax == "all" else []
            place = logits.device
            self._columns.append((torch.tensor([*group, *new], device=place), torch.tensor(group, device=place)))
        return self._columns

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self.teacher.take(module)
        self._rows = class_rows(module)
        self.groups = [list(group) for group in getattr(module, "logit_groups", [])]

    def _state(self) -> dict[str, Any]:
        rows = {"rows": self._rows} if self._rows else {}
        return {"teacher": dict(self.teacher.tensors), "groups": [list(group) for group in self.groups], **rows}

    def _load(self, state: dict[str, Any]) -> None:
        self.teacher.tensors = dict(state["teacher"])
        self.groups = [list(group) for group in state["groups"]]
        self._rows = state.get("rows", {})
