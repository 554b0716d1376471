"""Mean and spread of one figure over seeds."""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .text import DASH, number


@dataclass(frozen=True)
class Statistic:
    """Mean and sample standard deviation, ``sqrt(sum (x - mean)^2 / (n - 1))``; the latter is None for one value.

    Args:
        values: The values that were there, in the order of the runs.

    Example:
        >>> s = Statistic.of([0.9, None, 0.8])
        >>> s.n, round(s.mean, 3), round(s.sd, 4)
        (2, 0.85, 0.0707)
    """

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Statistic":
        """Leaves out what is None or not finite."""
        return cls(tuple(known for value in values if (known := number(value)) is not None))

    @property
    def n(self) -> int:
        """How many values."""
        return len(self.values)

    @property
    def mean(self) -> float | None:
        """Arithmetic mean; None of nothing."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None of fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, show: Callable[[float], str]) -> str:
        """``mean ± sd``, ``mean ± -`` of one value, ``-`` of none; ``show`` formats each number."""
        if self.mean is None:
            return DASH
        return f"{show(self.mean)} ± {DASH if self.sd is None else show(self.sd)}"
