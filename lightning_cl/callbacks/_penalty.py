"""The mechanism of every quadratic penalty: EWC, SI, MAS, RWalk, L2 and L2-SP."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from lightning_cl.callbacks._lambda import Schedule, Strength
from lightning_cl.callbacks._method import MethodCallback, plain_loader
from lightning_cl.callbacks._step_hooks import StepHooks
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import add_quadratic_gradient_, merge_online, pad_to

log = logging.getLogger(__name__)
Patterns = str | Sequence[str] | None


class PenaltyOptions(TypedDict, total=False):
    """Arguments of :class:`QuadraticPenalty` that its subclasses pass on."""

    apply: Literal["gradient", "proximal"]
    lambda_schedule: Schedule
    include: Patterns
    exclude: Patterns
    normalize: Literal["max", "mean"] | None
    importance_dtype: Literal["float32", "bfloat16"]
    importance_path: str | Path | None
    consolidate: Literal["auto", "manual"]
    select: Literal["last", "best"]
    state_path: str | Path | None


@dataclass
class _Plan:
    """An optimizer's trainable, selected parameters, and those with a penalty by the sign of their step."""

    count: int
    named: dict[str, Tensor] = field(default_factory=dict)
    # (parameters, importances, anchors), for groups that minimise and for those with maximize=True
    blocks: dict[bool, tuple[list[Tensor], list[Tensor], list[Tensor]]] = field(default_factory=dict)


class QuadraticPenalty(MethodCallback):
    r"""Base of the callbacks that pull parameters towards where earlier tasks left them.

    The penalty is :math:`\frac{\lambda}{2}\sum_i \Omega_i\,(\theta_i-\theta^*_i)^2`, added to the batch-mean loss.
    Subclasses say where the importance :math:`\Omega` comes from: :meth:`_new_importance`, after each task, and, for
    those that gather it on the way, the hooks :meth:`_on_task_start`, :meth:`_before_step`, :meth:`_after_penalty` and
    :meth:`_after_step`. With ``lambda_=0`` training is that without the callback, bit for bit.

    State: importance and anchor, two tensors per selected trainable parameter, for any number of tasks.

    Args:
        lambda_: Strength of the penalty, >= 0.
        lambda_schedule: Factors on lambda, one per task with a penalty (the last one repeats), or a function
            ``(task, step) -> factor``; ``task`` counts the tasks learned before.
        include, exclude: Regular expressions (:func:`re.search`) on parameter names: only those that ``include``
            matches, without those that ``exclude`` matches.
        normalize: Divide every new importance by its largest (``"max"``) or mean (``"mean"``) value over all
            parameters.
        importance_dtype: ``"float32"``, or ``"bfloat16"`` at half the size. Anchors are fp32 or wider.
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these ranges, patterns that match nothing, importances that are not finite or
            all zero, a sharded strategy, or a fused optimizer with a gradient scaler.
    """

    def __init__(
        self,
        lambda_: float,
        *,
        apply: Literal["gradient", "proximal"] = "gradient",
        lambda_schedule: Schedule = None,
        include: Patterns = None,
        exclude: Patterns = None,
        normalize: Literal["max", "mean"] | None = None,
        importance_dtype: Literal["float32", "bfloat16"] = "float32",
        importance_path: str | Path | None = None,
        name: str,
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, select=select, state_path=state_path)
        self._strength = Strength(lambda_, lambda_schedule)
        if normalize not in (None, "max", "mean"):
            raise InputError(f"normalize={normalize!r}", "None, 'max' or 'mean'", "leave it out for None")
        if importance_dtype not in ("float32", "bfloat16"):
            raise InputError(f"importance_dtype={importance_dtype!r}", "'float32' or 'bfloat16'", "leave it out")
        self.lambda_, self.apply, self.normalize = lambda_, apply, normalize
        self.include, self.exclude = _patterns("include", include), _patterns("exclude", exclude)
        self.importance_dtype: torch.dtype = getattr(torch, importance_dtype)
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._plans: dict[int, _Plan] = {}
        self._hooks = StepHooks()
        self._seen_gradients: set[int] = set()
        self._started = self._resumed = False
        self._step = 0

    # what subclasses give ---------------------------------------------------------------------------------------

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

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """A fit that goes on from a checkpoint goes on with its task."""
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        self._resumed = True

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse what cannot work with these parameters and optimizers, and listen to their steps."""
        self._plans, self._seen_gradients, self._step = {}, set(), 0
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and any(g.get("fused") for o in trainer.optimizers for g in o.param_groups):
            raise InputError(
                "a fused optimizer with 16-mixed precision", "gradients unscaled before the step", "set fused=False"
            )
        self._selected(pl_module)
        self._started = self._started and self._resumed
        self._resumed = False
        super().on_fit_start(trainer, pl_module)
        self._hooks.remove()
        self._listen(trainer, pl_module, trainer.optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the task; see whether consolidation will work; warn where the explicit gradient cannot be stable."""
        if not self._started:
            self._on_task_start(trainer, pl_module)
            self._started = True
        if self.consolidate_when == "auto" and self.needs_data:
            loader = plain_loader(trainer, pl_module)
            # one that may be readable only once is left alone
            if loader is not trainer.train_dataloader:
                self._rehearse(trainer, pl_module, loader)
        self._warn_if_unstable(trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add ``lambda * importance * (theta - anchor)`` to the gradients that this optimizer is about to use."""
        self._listen(trainer, pl_module, [optimizer])
        self._seen_gradients.add(id(optimizer))
        self._step = trainer.global_step
        plan = self._plan(pl_module, optimizer)
        self._before_step(pl_module, optimizer, plan.named)
        strength = self.strength
        if strength > 0:
            self._add_gradient(plan, strength)
        self._after_penalty(pl_module, optimizer, plan.named)

    def _stepped(self, trainer: Any, module: Any, optimizer: Any) -> None:
        self._step = trainer.global_step
        plan = self._plan(module, optimizer)
        self._seen_gradients.discard(id(optimizer))
        self._after_step(module, optimizer, plan.named)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stop listening."""
        self._hooks.remove()
        self._plans = {}

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Stop listening."""
        self._hooks.remove()
        self._plans = {}

    # mechanics ------------------------------------------------------------------------------------------------------

    def _listen(self, trainer: Any, module: Any, optimizers: Sequence[Any]) -> None:
        self._hooks.install(optimizers, lambda optimizer: self._stepped(trainer, module, optimizer))

    def _selected(self, module: Any) -> dict[str, Tensor]:
        """Name to parameter: what requires a gradient and is not left out by ``include`` and ``exclude``."""
        named = dict(module.named_parameters())
        for kind, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(pattern.search(name) for name in named):
                    some = ", ".join(list(named)[:5])
                    raise InputError(
                        f"{kind}={pattern.pattern!r}, which no parameter's name matches",
                        "a regular expression that finds at least one",
                        f"some parameters are {some}",
                    )
        return {
            name: parameter
            for name, parameter in named.items()
            if parameter.requires_grad
            and (not self.include or any(pattern.search(name) for pattern in self.include))
            and not any(pattern.search(name) for pattern in self.exclude)
        }

    def _plan(self, module: Any, optimizer: Any) -> _Plan:
        """The optimizer's parameters beside their importances and anchors; kept until what is trainable changes."""
        # trainable ones, because a schedule may thaw some between two steps
        count = sum(p.requires_grad for group in optimizer.param_groups for p in group["params"])
        plan = self._plans.get(id(optimizer))
        if plan is not None and plan.count == count and all(p.requires_grad for p in plan.named.values()):
            return plan
        maximize = {id(p): bool(group.get("maximize")) for group in optimizer.param_groups for p in group["params"]}
        plan = self._plans[id(optimizer)] = _Plan(count)
        for name, parameter in self._selected(module).items():
            if id(parameter) not in maximize:
                continue
            plan.named[name] = parameter
            if name not in self.importance:
                continue
            for store in (self.importance, self.anchor):
                store[name] = pad_to(store[name].to(parameter.device), parameter.shape)
            block = plan.blocks.setdefault(maximize[id(parameter)], ([], [], []))
            for tensors, tensor in zip(block, (parameter, self.importance[name], self.anchor[name]), strict=True):
                tensors.append(tensor)
        return plan

    def _add_gradient(self, plan: _Plan, strength: float) -> None:
        for maximize, (parameters, importances, anchors) in plan.blocks.items():
            gradients = []
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
            # an optimizer that maximises turns the sign of what is in .grad
            add_quadratic_gradient_(parameters, gradients, importances, anchors, -strength if maximize else strength)

    def _warn_if_unstable(self, trainer: Any) -> None:
        if not self.importance:
            return
        largest = max(float(f.max()) for f in self.importance.values() if f.numel())
        for optimizer in trainer.optimizers:
            rate = max(group.get("lr", 0.0) for group in optimizer.param_groups)
            if isinstance(optimizer, torch.optim.SGD) and rate * self.strength * largest > 2:
                log.warning(
                    "lr * lambda_ * max(F) = %.3g > 2: SGD diverges on this penalty; lower lambda_ to below %.3g",
                    rate * self.strength * largest,
                    2 / (rate * largest),
                )

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        selected = self._selected(module)
        new = {name: f for name, f in self._new_importance(trainer, module, loader).items() if name in selected}
        new = self._checked(new)
        # half-precision weights are anchored in fp32
        parameters = {name: selected[name].detach().to(_wide(selected[name].dtype)) for name in new}
        importance = {name: a.to(parameters.get(name, a).device) for name, a in self.importance.items()}
        anchor = {name: b.to(parameters.get(name, b).device) for name, b in self.anchor.items()}
        importance, anchor = self._merge(importance, anchor, new, parameters)
        self.importance = {name: value.to(self._kept_dtype(value)) for name, value in importance.items()}
        self.anchor = {name: value.clone() for name, value in anchor.items()}
        self._plans, self._started = {}, False

    def _checked(self, new: dict[str, Tensor]) -> dict[str, Tensor]:
        """The new importance, normalised; anything that is not a penalty is refused before the old one is touched."""
        for name, value in new.items():
            if not bool(value.isfinite().all()):
                raise InputError(
                    f"importance of {name!r}, which is not finite",
                    "finite numbers",
                    "look for NaN or inf in the weights (a training that diverged) or in the data",
                )
        largest = max((float(value.max()) for value in new.values() if value.numel()), default=0.0)
        if largest <= 0:
            raise InputError(
                f"an importance of {type(self).__name__} that is zero for every parameter",
                "a gradient somewhere in the task's data",
                "look for a loss that does not depend on the weights, or that has underflowed to 0",
            )
        if self.normalize is None:
            return new
        count = sum(value.numel() for value in new.values())
        scale = largest if self.normalize == "max" else sum(float(value.sum()) for value in new.values()) / count
        return {name: value / scale for name, value in new.items()}

    def _kept_dtype(self, value: Tensor) -> torch.dtype:
        return _wide(value.dtype) if self.importance_dtype == torch.float32 else self.importance_dtype

    def _state(self) -> dict[str, Any]:
        return {"importance": dict(self.importance), "anchor": dict(self.anchor), "started": self._started}

    def _load(self, state: dict[str, Any]) -> None:
        self.importance = {name: value.clone() for name, value in state["importance"].items()}
        self.anchor = {name: value.clone() for name, value in state["anchor"].items()}
        self._started = state.get("started", False)
        self._plans = {}


def _patterns(kind: str, given: Patterns) -> list[re.Pattern[str]]:
    found = []
    for pattern in [] if given is None else [given] if isinstance(given, str) else given:
        try:
            found.append(re.compile(pattern))
        except (re.error, TypeError) as error:
            raise InputError(
                f"{kind}={pattern!r} ({error})", "a regular expression or a list of them", "escape ( as \\("
            ) from error
    return found


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
