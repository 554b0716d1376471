"""The mechanism of every quadratic penalty: EWC, SI, MAS, RWalk, L2 and L2-SP."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lightning_cl.callbacks._importance_file import fitted
from lightning_cl.callbacks._lambda import Schedule, Strength
from lightning_cl.callbacks._method import MethodCallback, plain_loader
from lightning_cl.callbacks._parameter_filter import ParameterFilter, Patterns
from lightning_cl.callbacks._penalty_plan import PenaltyPlan, refuse_unknown_steps
from lightning_cl.callbacks._stability import StabilityGuard
from lightning_cl.callbacks._step_hooks import StepHooks
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import merge_online
from lightning_cl.importance_files import ImportanceFile, check_importance, load_importance

log = logging.getLogger(__name__)


class PenaltyOptions(TypedDict, total=False):
    """Arguments of :class:`QuadraticPenalty` that its subclasses pass on."""

    apply: Literal["gradient", "proximal"]
    lambda_schedule: Schedule
    unstable: Literal["warn", "error"]
    include: Patterns
    exclude: Patterns
    normalize: Literal["max", "mean"] | None
    importance_dtype: Literal["float32", "bfloat16"]
    importance_path: str | Path | None
    consolidate: Literal["auto", "manual"]
    select: Literal["last", "best"]
    state_path: str | Path | None


class QuadraticPenalty(MethodCallback):
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
        lambda_: Strength of the penalty, >= 0.
        apply: ``"gradient"`` or ``"proximal"``. The latter needs an optimizer whose step is known: SGD, Adam, AdamW,
            NAdam, RAdam, RMSprop or Adagrad.
        lambda_schedule: Factors on lambda, one per task with a penalty (the last one repeats), or a function
            ``(task, step) -> factor``; ``task`` counts the tasks learned before, ``step`` the optimizer's in this fit.
        unstable: Where ``lr * lambda * max(importance)`` is more than SGD can bear in the gradient form: ``"warn"`` or
            ``"error"``.
        include, exclude: Regular expressions (:func:`re.search`) on parameter names: only those that ``include``
            matches, without those that ``exclude`` matches.
        normalize: Divide every new importance by its largest (``"max"``) or mean (``"mean"``) value over all
            parameters.
        importance_dtype: ``"float32"``, or ``"bfloat16"`` at half the size. Anchors are fp32 or wider.
        importance_path: A file of :mod:`lightning_cl.importance_files` that stands for a task learned before the first
            one; not read where a state is restored.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these ranges, patterns that match nothing, importances that are not finite or
            all zero, a file that does not fit, a sharded strategy, a fused optimizer with a gradient scaler, and steps
            of optimizers that Lightning does not see.
    """

    def __init__(
        self,
        lambda_: float,
        *,
        name: str,
        apply: Literal["gradient", "proximal"] = "gradient",
        lambda_schedule: Schedule = None,
        unstable: Literal["warn", "error"] = "warn",
        include: Patterns = None,
        exclude: Patterns = None,
        normalize: Literal["max", "mean"] | None = None,
        importance_dtype: Literal["float32", "bfloat16"] = "float32",
        importance_path: str | Path | None = None,
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, select=select, state_path=state_path)
        if apply not in ("gradient", "proximal"):
            raise InputError(f"apply={apply!r}", "'gradient' or 'proximal'", "leave it out for 'gradient'")
        if normalize not in (None, "max", "mean"):
            raise InputError(f"normalize={normalize!r}", "None, 'max' or 'mean'", "leave it out for None")
        if importance_dtype not in ("float32", "bfloat16"):
            raise InputError(f"importance_dtype={importance_dtype!r}", "'float32' or 'bfloat16'", "leave it out")
        self.lambda_, self.apply, self.normalize = lambda_, apply, normalize
        self.importance_dtype: torch.dtype = getattr(torch, importance_dtype)
        self.importance_path = importance_path
        self._file: ImportanceFile | None = None
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._strength = Strength(lambda_, lambda_schedule)
        self._filter = ParameterFilter(include, exclude)
        self._guard = StabilityGuard(unstable)
        self._hooks = StepHooks()
        self._plans: dict[int, PenaltyPlan] = {}
        # optimizers whose gradients have been seen and that have not stepped since
        self._prepared: set[int] = set()
        self._started = self._resumed = False
        self._step = 0

    # what subclasses give -----------------------------------------------------------------------------------------

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        """Importance of the task just learned, by the names of :meth:`_selected`; ``trainer`` may be None."""
        raise NotImplementedError

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The penalty so far and the new task's as one."""
        return merge_online(importance, anchor, new, parameters)

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
    def nbytes(self) -> int:
        """Bytes of importances and anchors."""
        return sum(t.numel() * t.element_size() for t in [*self.importance.values(), *self.anchor.values()])

    @property
    def strength(self) -> float:
        """Lambda in force at the latest step, with its schedule."""
        return self._strength.at(self.n_tasks, self._step)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Read ``state_path``, or else ``importance_path``."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self.importance_path is not None and self.n_tasks == 0:
            # names and shapes are known when the module has been set up; that it can be read is known now
            self._file = load_importance(self.importance_path)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """A fit that goes on from a checkpoint goes on with its task."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._resumed = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work with these parameters and optimizers, and listen to their steps."""
        self._forget_plans()
        self._prepared, self._step = set(), 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and any(g.get("fused") for o in trainer.optimizers for g in o.param_groups):
            raise InputError(
                "a fused optimizer with 16-mixed precision", "gradients unscaled before the step", "set fused=False"
            )
        if self.apply == "proximal":
            refuse_unknown_steps(trainer.optimizers)
        self._selected(pl_module)
        self._take_file(pl_module)
        self._started = self._started and self._resumed
        self._resumed = False
        super().on_fit_start(trainer, pl_module)
        self._hooks.remove()
        self._listen(trainer, pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the task; see whether consolidation will work, and whether the explicit gradient can be stable."""
        if not self._started:
            self._on_task_start(trainer, pl_module)
            self._started = True
        if self.consolidate_when == "auto" and self.needs_data:
            loader = plain_loader(trainer, pl_module)
            # one that may be readable only once is left alone
            if loader is not trainer.train_dataloader:
                self._rehearse(trainer, pl_module, loader)
        self._guard.start(self.importance)
        if self.apply == "gradient":
            self._guard.check(trainer.optimizers, self.strength)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add ``lambda * importance * (theta - anchor)`` to the gradients that this optimizer is about to use."""
        self._step = trainer.global_step
        self._listen(trainer, pl_module, [optimizer])
        self._prepared.add(id(optimizer))
        plan = self._plan(pl_module, optimizer)
        self._before_step(pl_module, optimizer, plan.named)
        strength = self.strength if self.apply == "gradient" else 0.0
        if strength > 0 and not plan.is_empty:
            self._guard.check([optimizer], strength)
            plan.add_gradient(optimizer, strength)
        self._after_penalty(pl_module, optimizer, plan.named)

    def _stepped(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self._step = trainer.global_step
        plan, strength = self._plan(module, optimizer), self.strength
        pulls = strength > 0 and not plan.is_empty
        if id(optimizer) not in self._prepared and ((pulls and self.apply == "gradient") or self._gathers):
            raise InputError(
                f"a step of {type(optimizer).__name__} that Lightning does not see, so that the penalty is not in it",
                "optimizers from self.optimizers()",
                "do not pass use_pl_optimizer=False" + ("" if self._gathers else "; or apply='proximal'"),
            )
        self._prepared.discard(id(optimizer))
        if pulls and self.apply == "proximal":
            plan.proximal_step(optimizer, strength)
        self._after_step(module, optimizer, plan.named)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stop listening."""
        self._hooks.remove()
        self._forget_plans()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop listening."""
        self._hooks.remove()
        self._forget_plans()

    # mechanics ----------------------------------------------------------------------------------------------------

    @property
    def _gathers(self) -> bool:
        """Whether the importance is gathered on the way, from every step's gradients."""
        hooks = ("_before_step", "_after_penalty")
        return any(getattr(type(self), hook) is not getattr(QuadraticPenalty, hook) for hook in hooks)

    def _listen(self, trainer: Any, module: Any, optimizers: Sequence[Any]) -> None:
        self._hooks.install(optimizers, lambda optimizer: self._stepped(trainer, module, optimizer))

    def _selected(self, module: Any) -> dict[str, Tensor]:
        """Name to parameter: what requires a gradient and is not left out by ``include`` and ``exclude``."""
        return {name: p for name, p in self._filter(dict(module.named_parameters())).items() if p.requires_grad}

    def _plan(self, module: Any, optimizer: Any) -> PenaltyPlan:
        plan = self._plans.get(id(optimizer))
        if plan is None or not plan.is_current(optimizer):
            plan = PenaltyPlan(optimizer, self._selected(module), self.importance, self.anchor)
            self._plans[id(optimizer)] = plan
        return plan

    def _forget_plans(self) -> None:
        self._plans = {}

    def _take_file(self, module: Any) -> None:
        """Begin with the penalty of ``importance_path``, as if a task had been learned with it."""
        if self._file is None or self.n_tasks:
            return
        file, named = self._file, dict(module.named_parameters())
        importance, anchor = fitted(file, named, str(self.importance_path))
        chosen = self._filter(named)
        new = self._normalized({name: f.to(named[name].device) for name, f in importance.items() if name in chosen})
        self._keep(new, {name: anchor[name].to(named[name].device) for name in new})
        self.n_tasks, self._file = 1, None
        log.info("%s: penalty on %d parameters from %s (%s)", self.state_key, len(new), self.importance_path, file.info)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self._file is None and self.importance_path is not None and self.n_tasks == 0:
            self._file = load_importance(self.importance_path)
        self._take_file(module)
        selected = self._selected(module)
        new = {name: f for name, f in self._new_importance(trainer, module, loader).items() if name in selected}
        # half-precision weights are anchored in fp32
        parameters = {name: selected[name].detach().to(_wide(selected[name].dtype)) for name in new}
        # a strong penalty may hold everything where it is; nothing is gathered then
        if not (self._gathers and self.importance and not any(bool(value.any()) for value in new.values())):
            check_importance(new, parameters, where=f" of {self.state_key}")
            new = self._normalized(new)
        importance = {name: a.to(parameters.get(name, a).device) for name, a in self.importance.items()}
        anchor = {name: b.to(parameters.get(name, b).device) for name, b in self.anchor.items()}
        self._keep(*self._merge(importance, anchor, new, parameters))
        self._started = False

    def _normalized(self, new: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.normalize is None:
            return new
        if self.normalize == "max":
            scale = max(float(value.max()) for value in new.values() if value.numel())
        else:
            total = sum(float(value.sum(dtype=torch.float64)) for value in new.values())
            scale = total / sum(value.numel() for value in new.values())
        return {name: value / scale for name, value in new.items()}

    def _keep(self, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        narrow = None if self.importance_dtype == torch.float32 else self.importance_dtype
        self.importance = {name: value.to(narrow or _wide(value.dtype)) for name, value in importance.items()}
        self.anchor = {name: value.clone() for name, value in anchor.items()}
        self._forget_plans()

    def _state(self) -> dict[str, Any]:
        return {"importance": dict(self.importance), "anchor": dict(self.anchor), "started": self._started}

    def _load(self, state: dict[str, Any]) -> None:
        self.importance = {name: value.clone() for name, value in state["importance"].items()}
        self.anchor = {name: value.clone() for name, value in state["anchor"].items()}
        self._started = state.get("started", False)
        self._forget_plans()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
