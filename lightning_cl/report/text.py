"""Numbers as people read them; a dash where there is none."""

import math
from collections.abc import Sequence
from typing import Any

DASH = "-"
_FLOPS = tuple(f"{prefix}FLOPs" for prefix in ("", "k", "M", "G", "T", "P", "E"))


def number(value: Any) -> float | None:
    """``value`` as a finite float, or None for null, NaN, infinities and everything that is not a number.

    Example:
        >>> number(3), number(float("nan")), number("3"), number(True)
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def decimal(value: float | None, digits: int = 2) -> str:
    """A fixed number of decimals, and no negative zero.

    Example:
        >>> decimal(-0.001), decimal(1.005, 1), decimal(None)
        ('0.00', '1.0', '-')
    """
    if value is None:
        return DASH
    text = f"{value:.{digits}f}"
    return text[1:] if text.startswith("-") and not text.strip("-0.") else text


def _scaled(value: float, step: float, units: Sequence[str]) -> str:
    rank = 0
    # rounding is part of the choice: 999.9996 must become 1.00 of the next unit, not 1000.00 of this one
    while rank < len(units) - 1 and abs(value) >= step - step * 5e-6:
        value, rank = value / step, rank + 1
    return f"{decimal(value, 0 if rank == 0 else 2)} {units[rank]}"


def flops(count: float | None) -> str:
    """Floating-point operations with a decimal prefix.

    Example:
        >>> flops(1.234e12), flops(950), flops(None)
        ('1.23 TFLOPs', '950 FLOPs', '-')
    """
    return DASH if count is None else _scaled(count, 1000, _FLOPS)


def flops_in(unit: str) -> float:
    """How many operations one unit of ``flops`` is.

    Example:
        >>> flops_in("MFLOPs")
        1000000.0
    """
    return 1000.0 ** _FLOPS.index(unit)


def size(count: float | None) -> str:
    """Bytes with a binary prefix.

    Example:
        >>> size(1536), size(12), size(None)
        ('1.50 KiB', '12 B', '-')
    """
    return DASH if count is None else _scaled(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def duration(seconds: float | None) -> str:
    """Seconds below a minute, then minutes, then hours.

    Example:
        >>> duration(3.21), duration(200), duration(7385), duration(None)
        ('3.2 s', '3 min 20 s', '2 h 03 min', '-')
    """
    if seconds is None:
        return DASH
    if seconds < 59.95:
        return f"{decimal(seconds, 1)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def shorten(text: str, length: int) -> str:
    """One line of at most ``length`` characters, with an ellipsis where something was left out.

    Example:
        >>> shorten("gaussian noise, severity 3", 14)
        'gaussian nois…'
    """
    text = " ".join(str(text).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def short_labels(names: Sequence[str], length: int) -> list[str]:
    """Names of at most ``length`` characters that can be told apart: their starts, else their ends too, else numbers.

    Example:
        >>> short_labels(["noise, severity 1", "noise, severity 2"], 11)
        ['noise…ity 1', 'noise…ity 2']
    """
    whole = [" ".join(str(name).split()) for name in names]
    head = length // 2
    both = [name if len(name) <= length else f"{name[:head]}…{name[head + 1 - length :]}" for name in whole]
    for labels in ([shorten(name, length) for name in whole], both):
        if len(set(labels)) == len(set(whole)):
            return labels
    return [str(i) for i in range(len(whole))]


def listed(names: Sequence[str], most: int = 8) -> str:
    """The first ``most`` names, and how many there are in all when some were left out.

    Example:
        >>> listed(["0", "1"]), listed(list("abcd"), 2)
        ('0, 1', 'a, b, … (4)')
    """
    shown = ", ".join(str(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, … ({len(names)})"
