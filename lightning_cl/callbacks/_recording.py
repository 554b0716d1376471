"""Manual optimization without stepping: what would have been stepped with is recorded instead."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl import _compat


class RecordingOptimizer(torch.optim.Optimizer):
    """Stands in for a real optimizer: same parameters and settings, but ``step`` only records the gradients.

    Args:
        optimizer: The real one; its groups are copied, its state is not touched.
        record: Called by ``step`` with each parameter that has a gradient.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, record: Callable[[Tensor], None]) -> None:
        super().__init__([{**group} for group in optimizer.param_groups], dict(optimizer.defaults))
        self.record = record
        self.others: Sequence[torch.optim.Optimizer] = ()  # stand-ins of the module's other optimizers

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """What Lightning's own wrapper calls the optimizer behind it."""
        return self

    def step(self, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
        """Record; a closure is run first, as every optimizer does."""
        result = closure() if closure is not None else None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.record(parameter)
        return result

    @contextlib.contextmanager
    def toggle_model(self, sync_grad: bool = True) -> Iterator[None]:
        """Only this optimizer's parameters require a gradient inside the block."""
        before = self.toggle()
        try:
            yield
        finally:
            self.untoggle(before)

    def toggle(self) -> list[tuple[Tensor, bool]]:
        """Switch off what only the other optimizers hold; returns what to give to :meth:`untoggle`."""
        mine = {id(p) for group in self.param_groups for p in group["params"]}
        theirs = [p for other in self.others for group in other.param_groups for p in group["params"]]
        before = [(p, p.requires_grad) for p in theirs if id(p) not in mine]
        for parameter, _ in before:
            parameter.requires_grad_(False)
        return before

    @staticmethod
    def untoggle(before: list[tuple[Tensor, bool]]) -> None:
        """Undo :meth:`toggle`."""
        for parameter, flag in before:
            parameter.requires_grad_(flag)


class SilentScheduler:
    """Stands in for a learning-rate scheduler: everything is the real one's, but ``step`` does nothing."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def step(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


class ManualRecorder:
    """Runs a manually optimized ``training_step`` and returns the gradients that its optimizers would have used.

    A parameter's gradient is the one that lies in ``.grad`` when its own optimizer steps: what another optimizer's
    backward left there is not counted. Steps that are skipped (accumulation over batches) count with the gradient that
    is there at the end; several steps in one call count with the sum of their gradients. Clipping is left out.

    Args:
        trainer: The Trainer, or None: then ``configure_optimizers()`` says what optimizers there are.
        module: The module.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        real, schedulers = _compat.optimizers_of(trainer, module)
        self.module = module
        self.gradients: dict[int, Tensor] = {}
        self.optimizers = [RecordingOptimizer(optimizer, self._record) for optimizer in real]
        for optimizer in self.optimizers:
            optimizer.others = [other for other in self.optimizers if other is not optimizer]
        self.schedulers = [SilentScheduler(scheduler) for scheduler in schedulers]
        self._toggled: dict[int, list[tuple[Tensor, bool]]] = {}

    def _record(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.detach().clone()
        known = self.gradients.get(id(parameter))
        self.gradients[id(parameter)] = gradient if known is None else known + gradient

    def __call__(self, step: Callable[[], Any]) -> dict[int, Tensor]:
        """``id(parameter)`` -> gradient of one call of ``step``; every ``.grad`` is as it was before."""
        self.gradients = {}
        parameters = list(self.module.parameters())
        before = [(p, p.grad, p.requires_grad) for p in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            with _compat.replaced(self.module, self._replacements()):
                step()
            for parameter in parameters:
                if parameter.grad is not None and id(parameter) not in self.gradients:
                    self._record(parameter)
        finally:
            for parameter, gradient, flag in before:
                parameter.grad = gradient
                parameter.requires_grad_(flag)
        return self.gradients

    def _replacements(self) -> dict[str, Callable[..., Any]]:
        def one_or_all(values: Sequence[Any]) -> Any:
            return values[0] if len(values) == 1 else list(values)

        def toggle(optimizer: Any) -> None:
            self._toggled[id(optimizer)] = optimizer.toggle()

        def untoggle(optimizer: Any) -> None:
            optimizer.untoggle(self._toggled.pop(id(optimizer), []))

        return {
            "optimizers": lambda use_pl_optimizer=True: one_or_all(self.optimizers),
            "lr_schedulers": lambda: one_or_all(self.schedulers) if self.schedulers else None,
            "manual_backward": lambda loss, *args, **kwargs: loss.backward(*args, **kwargs),
            "toggle_optimizer": toggle,
            "untoggle_optimizer": untoggle,
            "clip_gradients": lambda *args, **kwargs: None,
        }
