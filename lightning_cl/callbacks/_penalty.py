"""The mechanism of every quadratic penalty: EWC, SI, MAS, RWalk, L2 and L2-SP."""

import logging
from collections.abc import Sequence
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._class_rows import class_rows, refuse_other_rows, refuse_shrunk
from lightning_cl.callbacks._kept_penalty import KeptPenalty
from lightning_cl.callbacks._lambda import Lambda, Schedule, Strength
from lightning_cl.callbacks._penalty_options import KeptOptions, PenaltyOptions
from lightning_cl.callbacks._penalty_plan import PenaltyPlan, refuse_unknown_steps
from lightning_cl.callbacks._plain_loader import FirstBatches, plain_loader
from lightning_cl.callbacks._stability import StabilityGuard
from lightning_cl.callbacks._step_hooks import StepHooks, refuse_scaled_gradients
from lightning_cl.errors import InputError
from lightning_cl.functional.suggestion import suggest_lambda

__all__ = ["PenaltyOptions", "QuadraticPenalty"]

log = logging.getLogger(__name__)


class QuadraticPenalty(KeptPenalty):
    r"""Base of the callbacks that pull parameters towards where earlier tasks left them.

    The penalty is :math:`\frac{\lambda}{2}\sum_i \Omega_i\,(\theta_i-\theta^*_i)^2`, added to the batch-mean loss.
    With ``apply="gradient"`` its gradient goes into ``.grad`` right before the optimizer's step, and is clipped with
    the rest. With ``apply="proximal"`` every step of the optimizer is followed by the penalty's exact proximal step
    (see :mod:`lightning_cl.functional.proximal`), which is stable for every lambda; a parameter that had no gradient
    is in neither. Both are right under accumulation, AMP, DDP, manual optimization and several optimizers (a parameter
    that two of them hold is pulled at each one's steps). With ``lambda_=0`` training is that without the callback, bit
    for bit.

    Subclasses say where the importance :math:`\Omega` comes from: :meth:`_new_importance`, after each task, and, for
    those that gather it on the way, the hooks :meth:`_on_task_start`, :meth:`_before_step`, :meth:`_after_penalty` and
    :meth:`_after_step`.

    State: importance and anchor, two tensors per selected trainable parameter, for any number of tasks.

    Args:
        lambda_: Strength of the penalty, >= 0. ``"auto"`` is a first guess from the first importance and anchor (see
            :func:`lightning_cl.functional.suggest_lambda`), at the first step that has a penalty; the log states it,
            and the state keeps it. In the gradient form with SGD it stays below half of what is stable.
        apply: ``"gradient"`` or ``"proximal"``. The latter needs an optimizer whose step is known: SGD, Adam, AdamW,
            NAdam, RAdam, RMSprop or Adagrad.
        lambda_schedule: Factors on lambda, one per task with a penalty (the last one repeats), or a function
            ``(task, step) -> factor``; ``task`` counts the tasks learned before, ``step`` the optimizer's in this fit.
        unstable: Where ``lr * lambda * max(importance)`` is more than SGD can bear in the gradient form: ``"warn"`` or
            ``"error"``.
        name, include, exclude, normalize, importance_dtype, importance_path, consolidate, select, state_path: See
            :class:`~lightning_cl.callbacks._kept_penalty.KeptPenalty`.

    Raises:
        InputError: For values outside these ranges, patterns that match nothing, importances that are not finite or
            all zero, a classifier with the rows of other classes, a file that does not fit, a sharded strategy, a fused
            optimizer with a gradient scaler, and steps of optimizers that Lightning does not see.
    """

    def __init__(
        self,
        lambda_: Lambda,
        *,
        name: str,
        apply: Literal["gradient", "proximal"] = "gradient",
        lambda_schedule: Schedule = None,
        unstable: Literal["warn", "error"] = "warn",
        **kept: Unpack[KeptOptions],
    ) -> None:
        super().__init__(name=name, **kept)
        if apply not in ("gradient", "proximal"):
            raise InputError(f"apply={apply!r}", "'gradient' or 'proximal'", "leave it out for 'gradient'")
        self.lambda_, self.apply = lambda_, apply
        self._strength = Strength(lambda_, lambda_schedule)
        self._guard = StabilityGuard(unstable)
        self._hooks = StepHooks()
        self._plans: dict[int, PenaltyPlan] = {}
        self._rows: dict[str, list[str]] = {}  # class names, of classifiers that know them
        # optimizers whose gradients have been seen and that have not stepped since
        self._prepared: set[int] = set()
        self._started = self._resumed = False
        # restoring a sharded optimizer makes a step of no length
        self._training = False
        self._step = 0

    # what subclasses give -----------------------------------------------------------------------------------------

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        """Find out at the start of a fit whether :meth:`_new_importance` will work; ``loader`` may be read again."""

    def _on_task_start(self, trainer: Any, module: Any) -> None:
        """A task begins; not called where a fit goes on from a checkpoint of the same task."""

    def _before_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        """``.grad`` of this optimizer's trainable, selected parameters (by name) is the loss's alone, or None.

        It may hold NaN or inf where a gradient scaler will skip the step; :meth:`_after_step` is then not called.
        """

    def _after_penalty(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        """In the gradient form ``.grad`` now holds the penalty's gradient too; it is clipped after this."""

    def _after_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        """The optimizer has made its step, and the proximal form its own."""

    # hooks --------------------------------------------------------------------------------------------------------

    @property
    def strength(self) -> float:
        """Lambda in force at the latest step, with its schedule."""
        return self._strength.at(self.n_tasks, self._step)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """A fit that goes on from a checkpoint goes on with its task."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._resumed = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work with these parameters and optimizers, and listen to their steps."""
        self._forget_plans()
        self._prepared, self._step = set(), 0
        refuse_scaled_gradients(trainer)
        if self.apply == "proximal":
            refuse_unknown_steps(trainer.optimizers)
        selected = self._selected(pl_module)
        self._take_file(pl_module)
        held = [name for name in self._held if name in selected]
        refuse_other_rows(pl_module, held, self._rows)
        refuse_shrunk(selected, {name: self.importance[name] for name in held if name in self.importance})
        self._started = self._started and self._resumed
        self._resumed = False
        super().on_fit_start(trainer, pl_module)
        self._hooks.remove()
        self._listen(trainer, pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the task; see whether consolidation will work, and whether the explicit gradient can be stable."""
        self._training = True
        if not self._started:
            self._on_task_start(trainer, pl_module)
            self._started = True
        if self.consolidate_when == "auto" and self.needs_data:
            loader = plain_loader(trainer, pl_module)
            # one that may be readable only once is left alone
            if not isinstance(loader, FirstBatches) and loader is not trainer.train_dataloader:
                self._rehearse(trainer, pl_module, loader)
        self._guard.start(self.importance)
        if self.apply == "gradient" and self.lambda_ != "auto":
            self._guard.check(trainer.optimizers, self.strength)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add ``lambda * importance * (theta - anchor)`` to the gradients that this optimizer is about to use."""
        self._step = trainer.global_step
        self._listen(trainer, pl_module, [optimizer])
        self._prepared.add(id(optimizer))
        plan = self._plan(pl_module, optimizer)
        self._guess_lambda()
        self._before_step(pl_module, optimizer, plan.named)
        strength = self.strength if self.apply == "gradient" else 0.0
        if strength > 0 and not plan.is_empty:
            if self.lambda_ == "auto":
                strength = self._guard.capped([optimizer], strength)
            else:
                self._guard.check([optimizer], strength)
            plan.add_gradient(optimizer, strength)
        self._after_penalty(pl_module, optimizer, plan.named)

    def _stepped(self, trainer: Any, module: Any, optimizer: Any) -> None:
        if not self._training:
            return
        self._step = trainer.global_step
        self._guess_lambda()
        plan, strength = self._plan(module, optimizer), self.strength
        pulls = strength > 0 and not plan.is_empty
        needs_gradient = (pulls and self.apply == "gradient") or self._gathers
        if id(optimizer) not in self._prepared and needs_gradient and plan.named:
            raise InputError(
                f"a step of {type(optimizer).__name__} that Lightning does not see, so that the penalty is not in it",
                "optimizers from self.optimizers()",
                "do not pass use_pl_optimizer=False" + ("; or apply='proximal'" if pulls and not self._gathers else ""),
            )
        self._prepared.discard(id(optimizer))
        if pulls and self.apply == "proximal":
            plan.proximal_step(optimizer, strength)
        self._after_step(module, optimizer, plan.named)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stop listening."""
        self._hooks.remove()
        self._forget_plans()
        self._resumed = self._training = False

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop listening."""
        self.teardown(trainer, pl_module, "fit")

    # mechanics ----------------------------------------------------------------------------------------------------

    @property
    def _held(self) -> list[str]:
        """Names of the parameters that are pulled towards values of their own."""
        return list(self.importance)

    @property
    def _gathers(self) -> bool:
        """Whether the importance is gathered on the way, from every step's gradients."""
        hooks = ("_before_step", "_after_penalty")
        return any(getattr(type(self), hook) is not getattr(QuadraticPenalty, hook) for hook in hooks)

    def _guess_lambda(self) -> None:
        """Once, as soon as there is a penalty."""
        # a task with one class alone has left zeros
        if not self._strength.waits or not any(bool(value.any()) for value in self.importance.values()):
            return
        found = suggest_lambda(self.importance.values(), [self.anchor[name] for name in self.importance])
        if found is None:
            raise InputError(
                "lambda_='auto' where no important parameter differs from 0",
                "a model that has learned",
                "give a number",
            )
        self._strength.guess = found.lambda_
        log.info(
            "%s: lambda_='auto' is %.3g: sum(importance * anchor^2) is %.3g over %d parameters, at task %d",
            self.state_key,
            found.lambda_,
            found.curvature,
            len(self.importance),
            self.n_tasks,
        )

    def _listen(self, trainer: Any, module: Any, optimizers: Sequence[Any]) -> None:
        self._hooks.install(optimizers, lambda optimizer: self._stepped(trainer, module, optimizer))

    def _plan(self, module: Any, optimizer: Any) -> PenaltyPlan:
        plan = self._plans.get(id(optimizer))
        if plan is None or not plan.is_current(optimizer):
            plan = PenaltyPlan(optimizer, self._selected(module), self.importance, self.anchor)
            self._plans[id(optimizer)] = plan
        return plan

    def _forget_plans(self) -> None:
        self._plans = {}

    def consolidate(self, trainer: Any, pl_module: Any, dataloader: Any = None) -> None:
        """See :meth:`~lightning_cl.callbacks._method.MethodCallback.consolidate`."""
        # here, because KFAC and L2-SP consolidate in their own way
        if self.phase != "consolidated" or trainer is None:
            self._rows = class_rows(pl_module)
        super().consolidate(trainer, pl_module, dataloader)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        super()._consolidate(trainer, module, loader)
        self._started = False

    def _state(self) -> dict[str, Any]:
        guess = {} if self._strength.guess is None else {"lambda": self._strength.guess}
        rows = {"rows": self._rows} if self._rows else {}
        return {**super()._state(), "started": self._started, **guess, **rows}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._started = state.get("started", False)
        self._strength.guess = state.get("lambda")
        self._rows = state.get("rows", {})
