"""A learning rate read from the curve of a range test."""

import math
from collections.abc import Sequence

import torch


def steepest_learning_rate(
    rates: Sequence[float], losses: Sequence[float], skip_begin: int = 10, skip_end: int = 1
) -> float | None:
    r"""The rate at which the loss falls fastest, per factor of the rate (range test, Smith 2017, arXiv:1506.01186).

    .. math:: \arg\min_{\eta} \frac{d\,L(\eta)}{d \log \eta}

    The derivative is taken over the logarithm, because the rates of a range test grow by factors: over the rate itself
    it is largest where the rates, and so their distances, are smallest, whatever the loss does there.

    Args:
        rates: Rates tried, > 0 and growing.
        losses: The (smoothed) loss at each.
        skip_begin, skip_end: Points that are left out: the mean is not settled at first, and the loss explodes at last.

    Returns:
        The rate, or None if fewer than 2 points are left, or the loss falls nowhere.

    Example:
        >>> rates = [10.0**k for k in range(-6, 1)]
        >>> steepest_learning_rate(rates, [2.0, 2.0, 1.9, 1.2, 0.6, 0.5, 3.0], skip_begin=0)
        0.001
    """
    pairs = list(zip(rates, losses, strict=True))[skip_begin : len(rates) - skip_end]
    known = [(rate, loss) for rate, loss in pairs if math.isfinite(loss) and rate > 0]
    if len(known) < 2:
        return None
    logarithms = torch.tensor([math.log(rate) for rate, _ in known], dtype=torch.float64)
    values = torch.tensor([loss for _, loss in known], dtype=torch.float64)
    (slopes,) = torch.gradient(values, spacing=(logarithms,))
    place = int(slopes.argmin())
    # a flat curve falls by rounding only
    return known[place][0] if float(slopes[place]) < -1e-9 * float(values.abs().max()) else None
