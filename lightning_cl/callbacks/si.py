"""Synaptic intelligence."""

from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._path import PathIntegral
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.errors import InputError
from lightning_cl.functional.path_integral import synaptic_importance
from lightning_cl.functional.penalty import add_quadratic_gradient_


class SI(QuadraticPenalty):
    r"""Keeps parameters that lowered the loss of earlier tasks near their values (Zenke, Poole & Ganguli 2017).

    Synaptic intelligence (arXiv:1703.04200) gathers its importance while a task is learned, and needs no pass over the
    data. Over the optimizer's steps, and at the end of the task,

    .. math:: W_i = -\sum_{steps} g_i\,\Delta\theta_i, \qquad
        \Omega_i \leftarrow \Omega_i + \max\left(0, \frac{W_i}{(\theta_i^{end}-\theta_i^{start})^2 + \xi}\right)

    and the penalty is :math:`\frac{\lambda}{2}\sum_i \Omega_i(\theta_i-\theta^*_i)^2` around the newest weights.
    :math:`\Delta\theta` is the real movement in a step: momentum, Adam, clipping, weight decay and the proximal step
    are in it, and a step that a gradient scaler skips is not. :math:`g` is the gradient where the step began, averaged
    over accumulated batches and over processes, before it is clipped.

    Zenke's penalty is :math:`c \sum \Omega (\theta-\theta^*)^2`: lambda = 2c. A negative share of a task counts as 0
    (Zenke's code clamps the sum over tasks instead, Hsu's code nothing).

    State: importance and anchor; while a task is learned W and the weights at its start too, and two buffers of the
    weights' size that are not saved. A task is a ``fit``; with ``consolidate="manual"`` it lasts until it is
    consolidated. Not supported: optimizers that call their closure more than once per step (LBFGS). Of other penalties
    on the Trainer, those that stand before it in ``callbacks`` are part of the task's gradient.

    Like EWC it does not solve class-incremental learning (about 20 % on Split MNIST).

    Args:
        lambda_: Strength of the penalty, >= 0, or ``"auto"``; twice Zenke's c.
        xi: Damping, > 0, in units of squared parameters.
        path_gradient: Gradient in W: ``"total"``, with that of the penalty, or ``"task"``, without it (as in Zenke's
            and Hsu's code). They are the same in the first task.
        name, apply, lambda_schedule, include, exclude, normalize, importance_dtype, importance_path, consolidate,
            select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For values outside these ranges, a task without a step, or what every penalty refuses.
    """

    needs_data = False

    def __init__(
        self,
        lambda_: float | Literal["auto"],
        *,
        xi: float = 0.1,
        path_gradient: Literal["total", "task"] = "total",
        name: str = "si",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        if not isinstance(xi, int | float) or not 0 < xi < float("inf"):
            raise InputError(f"xi={xi!r}", "a finite number > 0", "xi=0.1 is the default")
        if path_gradient not in ("total", "task"):
            raise InputError(f"path_gradient={path_gradient!r}", "'total' or 'task'", "leave it out for 'total'")
        self.xi, self.path_gradient = float(xi), path_gradient
        self._path = PathIntegral()

    def _on_task_start(self, trainer: Any, module: Any) -> None:
        if self.consolidate_when == "auto":
            self._path.clear()

    def _before_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        if self.path_gradient == "task" or self.apply == "proximal":
            gradients = self._path.take(named, optimizer)
            if self.path_gradient == "total":
                self._add_penalty(gradients, named)

    def _after_penalty(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        if self.path_gradient == "total" and self.apply == "gradient":
            self._path.take(named, optimizer)

    def _add_penalty(self, gradients: dict[str, Tensor], named: dict[str, Tensor]) -> None:
        """The proximal form never puts it into ``.grad``."""
        names = [name for name in gradients if name in self.importance]
        parameters, added, importances, anchors = (
            [source[name] for name in names] for source in (named, gradients, self.importance, self.anchor)
        )
        add_quadratic_gradient_(parameters, added, importances, anchors, self.strength)

    def _after_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        self._path.add(named)

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        end = {name: p.detach() for name, p in self._selected(module).items() if name in self._path.integral}
        if not end:
            raise InputError(
                "SI without a step of training since the last consolidation",
                "a task that was trained with this callback on its Trainer",
                "take EWC or MAS for a model that was trained elsewhere",
            )
        path = {name: self._path.integral[name].to(p.device) for name, p in end.items()}
        start = {name: self._path.start[name].to(p.device) for name, p in end.items()}
        return synaptic_importance(path, start, end, self.xi)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        super()._consolidate(trainer, module, loader)
        self._path.clear()

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "path": self._path.state()}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._path.load(state["path"])
