"""Recent samples are more likely to be held."""

from typing import ClassVar

from lightning_cl.errors import InputError
from lightning_cl.memory._index import RowIndex
from lightning_cl.memory.policies.reservoir import Reservoir


class TimeWeighted(Reservoir):
    r"""A reservoir whose samples fade exponentially with their age (Aggarwal, VLDB 2006: biased reservoir sampling).

    With M places and time constant W >= M, sample number r (from 1) is held after t samples with probability

    .. math:: \frac{M}{W}\left(1-\frac1W\right)^{t-\max(r, W)} \quad (t \ge W), \qquad \min(1, M/t) \quad (t < W):

    a plain reservoir until W samples have been seen, from then on each new sample enters with probability M / W at a
    place chosen at random (Aggarwal's algorithm with bias 1/W; his memory fills slowly, this one at once). Places that
    deletion or ``max_age`` have emptied are filled when a draw falls on them.

    Args:
        time_constant: W, in samples offered; 10 times the memory's size by default.

    State: that of :class:`Reservoir`.
    """

    windowed: ClassVar[bool] = False

    def __init__(self, time_constant: int | None = None) -> None:
        if time_constant is not None and (not isinstance(time_constant, int) or time_constant < 1):
            raise InputError(f"time_constant={time_constant!r}", "an integer >= the memory's size", "leave it out")
        self.time_constant = time_constant

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Check the time constant against the size."""
        super().open(size, index, max_age)
        self.horizon = 10 * size if self.time_constant is None else self.time_constant
        if self.horizon < size:
            raise InputError(
                f"time_constant={self.time_constant} for a memory of {size} samples",
                "at least the memory's size: there, every new sample is kept",
                f"time_constant={size}",
            )
