"""What A-GEM and GEM share: reference gradients of memory samples, and the gradient that is projected on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._step_hooks import refuse_scaled_gradients
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of


@dataclass
class Reference:
    """The mean gradient over ``n`` memory samples, by ``id`` of the parameter; parameters without one are left out."""

    n: int = 0
    of: dict[int, Tensor] = field(default_factory=dict)

    def add(self, n: int, gradients: dict[int, Tensor]) -> None:
        """Take another mean gradient, over ``n`` samples, into the mean."""
        total = self.n + n
        for key, new in gradients.items():
            old = self.of.get(key)
            # a single one is kept as it is, to the last bit
            share = new if total == n else new * (n / total)
            self.of[key] = share if old is None else old * (self.n / total) + share
        for key in self.of.keys() - gradients.keys():
            self.of[key] = self.of[key] * (self.n / total)
        self.n = total


class GradientProjection(MemoryMethod):
    """Base of the callbacks that let a step follow the gradient only as far as earlier tasks allow.

    At every training step the shared hub runs the user's ``training_step`` on each draw of memory samples, silently,
    and ``torch.autograd.grad`` takes that loss's gradient over the optimizer's trainable parameters, never through
    ``.grad``. Right before the optimizer's step ``.grad`` is replaced by :meth:`_project` of it; it is clipped after
    that. Under gradient accumulation a reference gradient is the mean over the draws of all batches of the step (the
    samples count alike), under DDP over all processes, so that all project alike. What callbacks that stand before this
    one have added to ``.grad`` (the penalty of ``callbacks=[EWC(...), AGEM(...)]``) is projected too; what those behind
    it add is not. A parameter without a gradient counts as one with zeros, and gets what the projection gives it.

    A gradient scaler's scale is not in the reference gradients; one that is not finite changes nothing. BatchNorm
    modules see the memory samples as they see every training batch.

    Args:
        memory_size, batch_size, fill, label_fn, seed, name, consolidate, state_path, **memory: See
            :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`.
        policy: ``"task_balanced"`` (an equal share for every task learned, a reservoir within each), or one of
            :class:`~lightning_cl.memory.Memory`.
        max_per_task: For ``task_balanced``: no task holds more, even while there is room.

    State: the memory (at most ``memory_size`` samples), its generators, and how many samples were replayed and how many
    gradients projected.

    Raises:
        InputError: For values outside these; in ``setup`` for manual optimization; on the start of a fit for a fused
            optimizer with a gradient scaler.
    """

    def __init__(
        self,
        memory_size: int | None,
        *,
        policy: str,
        max_per_task: int | None,
        batch_size: int | None,
        fill: Literal["consolidate", "step"],
        label_fn: Callable[[Any], Tensor] | None,
        seed: int,
        name: str,
        consolidate: Literal["auto", "manual"],
        state_path: str | Path | None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        by_task = policy == "task_balanced"
        if max_per_task is not None and (not by_task or not isinstance(max_per_task, int) or max_per_task < 1):
            raise InputError(
                f"max_per_task={max_per_task!r} with policy={policy!r}",
                "an integer >= 1 with policy 'task_balanced'",
                "leave max_per_task out",
            )
        super().__init__(
            memory_size,
            # a share for every task is a share for every class, if the task is what the samples are labelled with
            policy="class_balanced" if by_task else policy,
            max_per_class=max_per_task,
            batch_size=batch_size,
            fill=fill,
            label_fn=self._task_of if by_task else label_fn,
            seed=seed,
            name=name,
            consolidate=consolidate,
            state_path=state_path,
            **memory,
        )
        self.policy = policy
        self.projected = 0
        self._references: list[Reference] = []

    @property
    def needs_boundary(self) -> bool:
        """Whether the memory is filled at the end of a task, or has a share for each."""
        return super().needs_boundary or self.policy == "task_balanced"

    @property
    def boundary_hint(self) -> str:
        """Empty: it always has a share of the memory for each task."""
        return ""

    def _task_of(self, batch: Any) -> Tensor:
        """The present task's number for each sample."""
        return torch.full((size_of(batch),), self.n_tasks)

    def _project(self, gradient: list[Tensor], references: Sequence[list[Tensor]]) -> list[Tensor]:
        """The gradient that the optimizer gets; the tensors of ``gradient`` themselves where it stays as it is."""
        raise NotImplementedError

    # hooks ----------------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse optimizers whose gradients are not known before their step."""
        refuse_scaled_gradients(trainer)
        super().on_fit_start(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Project ``.grad``."""
        references, self._references = self._references, []
        if not references:
            return
        parameters = _trainable([optimizer])
        if trainer.world_size > 1:
            references = [_over_processes(trainer, reference, parameters) for reference in references]
        references = [reference for reference in references if reference.n]
        used = [p for p in parameters if p.grad is not None or any(id(p) in r.of for r in references)]
        if not used or not references:
            return
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in used]
        rows = [[_of(reference, p) for p in used] for reference in references]
        projected = self._project(gradient, rows)
        if projected[0] is gradient[0]:
            return
        self.projected += 1
        for parameter, new in zip(used, projected, strict=True):
            parameter.grad = new

    def _listener(self) -> Any:
        return self._gather

    def _gather(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        """Add the gradients of this step's draws to the reference gradients; the output stays as it is."""
        scaler = getattr(self._trainer.precision_plugin, "scaler", None)
        scale = 1.0 if scaler is None else scaler.get_scale()
        for position, drawn in enumerate(self.drawn):
            if position == len(self._references):
                self._references.append(Reference())
            loss = call(drawn.batch)
            if loss is not None and loss.requires_grad:
                parameters = _trainable(self._trainer.optimizers)
                found = _gradients(loss, parameters, scale)
                self._references[position].add(len(drawn.slots), found)
        return output

    def _forget_the_fit(self) -> None:
        super()._forget_the_fit()
        self._references = []

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "projected": self.projected}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.projected = state["projected"]


def _trainable(optimizers: Sequence[Any]) -> list[Tensor]:
    """What the optimizers train."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return [p for group in groups for p in group["params"] if p.requires_grad]


def _gradients(loss: Tensor, parameters: list[Tensor], scale: float) -> dict[int, Tensor]:
    """The loss's gradient by ``id`` of the parameter. ``scale`` keeps small ones alive in half precision."""
    # backward passes belong outside autocast
    with torch.autocast(loss.device.type, enabled=False):
        found = torch.autograd.grad(loss * scale if scale != 1 else loss, parameters, allow_unused=True)
    pairs = ((id(p), g) for p, g in zip(parameters, found, strict=True) if g is not None)
    return {key: gradient / scale if scale != 1 else gradient for key, gradient in pairs}


def _of(reference: Reference, parameter: Tensor) -> Tensor:
    found = reference.of.get(id(parameter))
    return torch.zeros_like(parameter) if found is None else found


def _over_processes(trainer: Any, reference: Reference, parameters: list[Tensor]) -> Reference:
    """The mean over the samples of all processes; every process calls it for the same number of references."""
    flat = torch.cat([_of(reference, p).flatten() for p in parameters]) * reference.n
    # in fp32: the number of samples travels with the sums
    sums = torch.cat([flat.float(), flat.new_tensor([reference.n], dtype=torch.float32)])
    sums = trainer.strategy.reduce(sums, reduce_op="sum")
    n = int(sums[-1])
    if n == 0:
        return Reference()
    parts = (sums[:-1] / n).split([p.numel() for p in parameters])
    return Reference(n, {id(p): g.view_as(p).to(p.dtype) for p, g in zip(parameters, parts, strict=True)})
