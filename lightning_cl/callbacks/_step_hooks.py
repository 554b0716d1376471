"""What holds around the steps of optimizers: calls after those that are really made, gradients before them."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_cl.errors import InputError


def refuse_scaled_gradients(trainer: Any) -> None:
    """Refuse fused optimizers with a gradient scaler: they unscale by themselves, after ``on_before_optimizer_step``.

    Raises:
        InputError: If there is one.
    """
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is not None and any(g.get("fused") for o in trainer.optimizers for g in o.param_groups):
        raise InputError(
            "a fused optimizer with 16-mixed precision", "gradients unscaled before the step", "set fused=False"
        )


class StepHooks:
    """One function behind the steps of some optimizers, until it is removed.

    The hook is torch's own ``register_step_post_hook``: it does not fire where a gradient scaler skips a step, and it
    does under accumulation (once per step), manual optimization and several optimizers.
    """

    def __init__(self) -> None:
        self._handles: dict[int, tuple[Optimizer, Any]] = {}

    def install(self, optimizers: Iterable[Any], after: Callable[[Any], None]) -> None:
        """Call ``after(optimizer)`` behind every step of these; those that have the hook already are left alone."""
        for optimizer in optimizers:
            if id(optimizer) not in self._handles and isinstance(optimizer, Optimizer):
                handle = optimizer.register_step_post_hook(lambda optimizer, args, kwargs: after(optimizer))
                self._handles[id(optimizer)] = (optimizer, handle)

    def remove(self) -> None:
        """Take all of them off."""
        for _, handle in self._handles.values():
            handle.remove()
        self._handles = {}
