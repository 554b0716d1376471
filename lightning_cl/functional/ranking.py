"""Ranks, and how far several of them agree."""

from collections.abc import Sequence


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, 1 for the largest; equal values share the mean of their ranks.

    Example:
        >>> ranks([0.5, 0.9, 0.5])
        [2.5, 1.0, 2.5]
    """
    return [sum(o > v for o in values) + (sum(o == v for o in values) + 1) / 2 for v in values]


def kendall_w(rankings: Sequence[Sequence[float]]) -> float | None:
    """Kendall's coefficient of concordance of m rankings of the same n things, corrected for ties; None if n < 2.

    ``W = 12 S / (m^2 (n^3 - n) - m T)``; 1 for full agreement, 0 for none.

    Args:
        rankings: As :func:`ranks` gives them.

    Example:
        >>> kendall_w([[1, 2, 3], [1, 2, 3]]), kendall_w([[1, 2, 3], [3, 2, 1]])
        (1.0, 0.0)
    """
    m, n = len(rankings), len(rankings[0]) if rankings else 0
    if m < 1 or n < 2:
        return None
    totals = [sum(ranking[i] for ranking in rankings) for i in range(n)]
    spread = sum((total - sum(totals) / n) ** 2 for total in totals)
    ties = sum(r.count(v) ** 3 - r.count(v) for r in map(list, rankings) for v in set(r))
    room = m**2 * (n**3 - n) - m * ties
    return 12 * spread / room if room > 0 else None
