"""The parameters and modules that a freezing schedule holds during a fit."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from lightning_cl.callbacks._freezing_modes import HeldModules, frozen_modules
from lightning_cl.callbacks._freezing_plan import Plan


class FrozenPart:
    """Freezes what a plan says, and gives everything back as it was.

    Args:
        module: The module; from now on it is remembered which of its parameters required a gradient.
        plan: What thaws in which order.
        of_others: Ids of parameters that other schedules freeze now and thaw at another time.
    """

    def __init__(self, module: nn.Module, plan: Plan, of_others: set[int]) -> None:
        self.module, self.plan, self.of_others = module, plan, of_others
        ours = [p for part in plan.parts for p in part.parameters.values()] + list(plan.never.values())
        self._given = [(p, p.requires_grad) for p in ours]
        self._held = HeldModules()

    def freeze(self, thawed: int) -> None:
        """Gradients and modes as they have to be when this many phases are thawed."""
        frozen = self.plan.frozen(thawed)
        for part in self.plan.parts[:thawed]:
            for parameter in part.parameters.values():
                parameter.requires_grad_(True)
        for parameter in frozen.values():
            parameter.requires_grad_(False)
            parameter.grad = None
        ours = {id(p) for p in frozen.values()}
        # frozen by the user, for good; what another schedule holds is thawed at another time
        fixed = {id(p) for p in self.module.parameters() if not p.requires_grad} - ours - self.of_others
        held = frozen_modules(self.module, ours, fixed, self.plan.named) if frozen else {}
        self._held.release(held)
        self._held.hold(held)

    def release(self) -> None:
        """Parameters and modes as they were."""
        for parameter, required in self._given:
            parameter.requires_grad_(required)
        self._held.release({})


@contextmanager
def requiring(frozen: Mapping[str, nn.Parameter], thawed: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside the block, the thawed parameters require a gradient and the frozen ones do not."""
    wanted = dict.fromkeys(thawed.values(), True) | dict.fromkeys(frozen.values(), False)
    given = {p: p.requires_grad for p in wanted}
    try:
        for parameter, required in wanted.items():
            parameter.requires_grad_(required)
        yield
    finally:
        for parameter, required in given.items():
            parameter.requires_grad_(required)
