"""The strength of a penalty: lambda, given or guessed from the data, and the schedule over it."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning_cl.errors import InputError

Lambda = float | Literal["auto"]
Schedule = Sequence[float] | Callable[[int, int], float] | None


class Strength:
    """What lambda is at a step of a task.

    Args:
        lambda_: A finite number >= 0, or ``"auto"``: 0 until ``guess`` is set.
        schedule: None, factors (one per task with a penalty; the last one repeats), or ``(task, step) -> factor``.

    Raises:
        InputError: For values out of range.
    """

    def __init__(self, lambda_: Lambda, schedule: Schedule) -> None:
        if lambda_ != "auto" and not _is_number(lambda_):
            raise InputError(f"lambda_={lambda_!r}", "a finite number >= 0, or 'auto'", "try lambda_=1000")
        if schedule is not None and not callable(schedule):
            factors = list(schedule) if isinstance(schedule, Sequence) and not isinstance(schedule, str) else []
            if not factors or not all(_is_number(factor) for factor in factors):
                raise InputError(
                    f"lambda_schedule={schedule!r}",
                    "finite factors >= 0, one per task with a penalty, or a function (task, step) -> factor",
                    "leave it out for one lambda throughout",
                )
            schedule = factors
        self.lambda_, self.schedule = lambda_, schedule
        self.guess: float | None = None

    @property
    def waits(self) -> bool:
        """Lambda is to be guessed, and has not been yet."""
        return self.lambda_ == "auto" and self.guess is None

    def at(self, task: int, step: int) -> float:
        """Lambda times the factor of this step.

        Args:
            task: Tasks learned before this one; 1 for the first task that has a penalty.
            step: Optimizer steps made in this fit.
        """
        base = (self.guess or 0.0) if self.lambda_ == "auto" else float(self.lambda_)
        if self.schedule is None:
            return base
        if not callable(self.schedule):
            return base * self.schedule[min(max(task, 1), len(self.schedule)) - 1]
        factor = self.schedule(task, step)
        if not _is_number(factor):
            raise InputError(
                f"lambda_schedule(task={task}, step={step}) -> {factor!r}", "a finite number >= 0", "check the function"
            )
        return base * float(factor)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
