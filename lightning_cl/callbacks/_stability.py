"""Whether SGD can be stable with the explicit gradient of a quadratic penalty."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl._sharded_tensors import largest
from lightning_cl.errors import InputError

log = logging.getLogger(__name__)


class StabilityGuard:
    r"""Warns, or refuses to go on, where the gradient form of a penalty makes SGD diverge.

    On the penalty alone, with curvature :math:`h = \lambda \max F`, SGD is stable while :math:`lr \cdot h` is below 2;
    with momentum m below :math:`2 (1 + m) / (1 - dampening)`, with Nesterov's below :math:`2 (1 + m) / (1 + 2m)`.

    Args:
        unstable: ``"warn"`` or ``"error"``.
        has_proximal: Whether the penalty can be applied as a proximal step instead.

    Raises:
        InputError: For another value.
    """

    def __init__(self, unstable: Literal["warn", "error"], *, has_proximal: bool = True) -> None:
        if unstable not in ("warn", "error"):
            raise InputError(f"unstable={unstable!r}", "'warn' or 'error'", "leave it out for 'warn'")
        self.unstable, self.has_proximal = unstable, has_proximal
        self.start({})

    def start(self, importance: Mapping[str, Tensor]) -> None:
        """Begin a fit with this importance."""
        self._largest: float | None = None
        self._importance = importance
        self._checked = 0.0

    def capped(self, optimizers: Iterable[Any], strength: float) -> float:
        """The strength, or half of what SGD can bear if that is less: for a lambda that nobody has chosen."""
        slope, largest = max((_ratio(group)[0] for group in _sgd_groups(optimizers)), default=0.0), self._max()
        bound = 0.5 / (slope * largest) if slope * largest > 0 else float("inf")
        if strength > bound and self._checked == 0:
            self._checked = float("inf")
            log.info("lambda_='auto' is lowered from %.3g to %.3g, half of what SGD can bear; HINT: apply='proximal'",
                     strength, bound)  # fmt: skip
        return min(strength, bound)

    def _max(self) -> float:
        if self._largest is None:
            self._largest = largest(self._importance.values())
        return self._largest

    def check(self, optimizers: Iterable[Any], strength: float) -> None:
        """Look at the rates now; cheap while they have not grown.

        Raises:
            InputError: If it cannot be stable and ``unstable="error"``.
        """
        ratio, rate, limit = max((_ratio(group) for group in _sgd_groups(optimizers)), default=(0.0, 0.0, 2.0))
        if ratio * strength <= self._checked or not self._importance:
            return
        largest = self._max()
        self._checked = ratio * strength
        if self._checked * largest <= 1:
            return
        # said once in a fit
        self._checked = float("inf")
        figure = (
            f"lr * lambda_ * max(F) = {rate:.3g} * {strength:.3g} * {largest:.3g} = "
            f"{rate * strength * largest:.3g} > {limit:.3g}: SGD diverges on this penalty"
        )
        below = f"lower lambda_ to below {limit / (rate * largest):.3g}"
        if self.unstable == "error":
            raise InputError(
                figure, "a stable penalty", f"apply='proximal', or {below}" if self.has_proximal else below
            )
        proximal = "apply='proximal' is stable for every lambda, or " if self.has_proximal else ""
        log.warning("%s; HINT: %s%s", figure, proximal, below)


def _sgd_groups(optimizers: Iterable[Any]) -> list[Mapping[str, Any]]:
    return [group for o in optimizers if isinstance(o, torch.optim.SGD) for group in o.param_groups]


def _ratio(group: Mapping[str, Any]) -> tuple[float, float, float]:
    """Learning rate over its limit per curvature, the rate, and the limit."""
    rate, momentum = float(group["lr"]), group["momentum"]
    limit = 2.0
    if momentum and group["nesterov"]:
        limit = 2 * (1 + momentum) / (1 + 2 * momentum)
    elif momentum:
        limit = 2 * (1 + momentum) / max(1 - group["dampening"], 1e-12)
    return rate / limit, rate, limit
