"""LR schedulers that take one more parameter group, as if it had been there when they were made."""

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_cl.errors import InputError

#: what a scheduler keeps per group: the new entry is the first group's, scaled or as it is
SCALED = ("base_lrs", "max_lrs", "_last_lr")
COPIED = ("lr_lambdas", "min_lrs", "base_momentums", "max_momentums")
#: the same in the groups themselves; everything else there is copied
SCALED_KEYS = ("lr", "initial_lr", "max_lr")


class Law:
    """The first group's learning rates, for a group whose own is ``lr`` (None: the same).

    ``lr`` is what the user would have given for the group: the peak with ``OneCycleLR`` and ``CyclicLR``, which set
    all others from it, else the learning rate at which the schedule begins.
    """

    def __init__(self, optimizer: Any, schedulers: list[Any], lr: float | None) -> None:
        first = optimizer.param_groups[0]
        peaks = [s.max_lrs[0] for s in walk(schedulers) if getattr(s, "max_lrs", None)]
        peaks += [first["max_lr"]] if "max_lr" in first else []
        self.reference = float([*peaks, first.get("initial_lr", first["lr"])][0])
        self.lr = self.reference if lr is None else lr
        self.has_peak = bool(peaks)

    def __call__(self, value: Any) -> Any:
        """The first group's value scaled to this group; a tensor stays one."""
        if isinstance(value, Tensor):
            return value.detach().clone() * (self.lr / self.reference)
        return self.lr if value == self.reference else value * (self.lr / self.reference)


def walk(schedulers: list[Any]) -> Iterator[Any]:
    """Schedulers with those that they hold."""
    for scheduler in schedulers:
        yield scheduler
        for value in list(vars(scheduler).values()):
            inner = value if isinstance(value, list | tuple) else [value]
            yield from walk([s for s in inner if isinstance(s, LRScheduler)])


def new_group(optimizer: Any, parameters: list[Any], law: Law, called: str) -> dict[str, Any]:
    """A parameter group with all settings of the first one, its own learning rates, and a name where those have one."""
    first = optimizer.param_groups[0]
    group = {key: _clone(value) for key, value in first.items() if key not in ("params", "param_names")}
    if "name" in first:  # LearningRateMonitor wants each once
        taken = {other.get("name") for other in optimizer.param_groups}
        group["name"] = next(name for n in count(1) if (name := called if n == 1 else f"{called} ({n})") not in taken)
    group.update({key: law(first[key]) for key in SCALED_KEYS if key in first})
    if "min_lr" in first and law.has_peak:  # of OneCycleLR, a fraction of the peak
        group["min_lr"] = law(first["min_lr"])
    return {**group, "params": parameters}


def extend(schedulers: list[Any], law: Law) -> None:
    """Give every scheduler the entries of one more group, which is in its optimizer by now."""
    for scheduler in walk(schedulers):
        rules: list[tuple[tuple[str, ...], Callable[[Any], Any]]] = [(SCALED, law), (COPIED, _clone)]
        for names, rule in rules:
            for name in names:
                values = getattr(scheduler, name, None)
                if isinstance(values, list | tuple) and len(values) == len(scheduler.optimizer.param_groups) - 1:
                    setattr(scheduler, name, type(values)([*values, rule(values[0])]))


def refuse_unknown(optimizer: Any, schedulers: list[Any], why: str) -> None:
    """Refuse schedulers that would not know what to do with another group.

    Raises:
        InputError: For a class that is not torch's and keeps values per group in places of its own, or no
            ``optimizer``; and for a scheduler that has been stepped, whose past is not known.
    """
    hint = "give the optimizer all parameters in configure_optimizers: frozen ones have no gradient and do not move"
    for scheduler in walk(schedulers):
        name = type(scheduler).__name__
        if not type(scheduler).__module__.startswith("torch.optim") and not _is_known(scheduler, optimizer):
            raise InputError(f"LR scheduler {name!r}, and {why}", "torch's own LR schedulers", hint)
        if getattr(scheduler, "last_epoch", 0) > 0:
            raise InputError(f"LR scheduler {name!r} that has been stepped, and {why}", "a new LR scheduler", hint)


def _is_known(scheduler: Any, optimizer: Any) -> bool:
    """Whether a scheduler of somebody's has per-group values in torch's own places only."""
    if not isinstance(scheduler, LRScheduler):
        return False
    groups = len(optimizer.param_groups)
    return not any(
        isinstance(value, list | tuple | dict | Tensor) and value is not None and _length(value) == groups
        for name, value in vars(scheduler).items()
        if name not in (*SCALED, *COPIED)
    )


def _length(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else len(value)


def _clone(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value
