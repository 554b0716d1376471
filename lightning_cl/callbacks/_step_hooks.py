"""Calls after the steps that optimizers really make."""

from collections.abc import Callable, Iterable
from typing import Any

from torch.optim import Optimizer


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
