"""Sweeps of a penalty's strength: one curve for each method and its other settings."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .row import ComparisonRow
from .selection import best_on_validation, lambda_key, lambda_of, scores
from .settings import value_text


@dataclass(frozen=True)
class LambdaCurve:
    """The rows of one method that differ in lambda only.

    Args:
        method: The method's name.
        label: Method and the other settings.
        points: ``(lambda, row)``, lambda > 0, the smallest first.
        others: ``(lambda as text, row)`` for those that have no place on a logarithmic axis (``0``, ``auto``).
    """

    method: str
    label: str
    points: list[tuple[float, ComparisonRow]]
    others: list[tuple[str, ComparisonRow]]

    @property
    def rows(self) -> list[ComparisonRow]:
        """All of them."""
        return [row for _, row in [*self.points, *self.others]]

    @property
    def best(self) -> list[ComparisonRow]:
        """The best on validation data, and its equals; empty if nothing can be claimed."""
        return best_on_validation(self.rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers (fractions), for comparison.json."""
        best = self.best
        named = [(number, row) for number, row in self.points] + [(text, row) for text, row in self.others]
        return {
            "method": self.method,
            "label": self.label,
            "points": [
                {
                    "lambda": value,
                    "validation": {"mean": row.validation_average.mean, "sd": row.validation_average.sd},
                    "test": {"mean": row.average_accuracy.mean, "sd": row.average_accuracy.sd},
                    "n": row.n,
                    "diverged": len(row.diverged),
                    "at_chance": sum(run.at_chance for run in row.runs),
                    "best_on_validation": any(row is one for one in best) if best else None,
                }
                for value, row in named
            ],
        }


def lambda_curves(rows: Sequence[ComparisonRow]) -> list[LambdaCurve]:
    """The curves with two lambdas or more among the rows of one stream, in the order of their labels."""
    groups: dict[tuple[str, str], list[ComparisonRow]] = defaultdict(list)
    for row in rows:
        if key := lambda_key(row):
            others = ", ".join(f"{name}={value}" for name, value in row.settings.items() if name != key)
            groups[row.method, others].append(row)
    curves = []
    for (method, others), members in sorted(groups.items()):
        points, rest = [], []
        for row in members:
            value = lambda_of(row)
            if value is not None and value > 0:
                points.append((value, row))
            else:
                rest.append((row.settings[lambda_key(row) or ""], row))
        if len({value for value, _ in points}) > 1:
            label = f"{method} ({others})" if others else method
            curves.append(LambdaCurve(method, label, sorted(points, key=lambda point: point[0]), rest))
    return curves


def lambda_line(curve: LambdaCurve) -> str:
    """What the curve shows, in words."""
    best, (smallest, largest) = curve.best, (value_text(curve.points[i][0]) for i in (0, -1))
    parts = [f"lambda from {smallest} to {largest}"]
    if best:
        value = best[0].settings[lambda_key(best[0]) or ""]
        edge = {id(curve.points[0][1]): "smallest", id(curve.points[-1][1]): "largest"}.get(id(best[0]))
        parts.append(f"best on validation is {value} ({scores(best)})")
        parts += [f"that is the {edge} one: a wider sweep may find a better one"] if edge and len(best) == 1 else []
    names = [value_text(value) for value, _ in curve.points] + [text for text, _ in curve.others]
    for word, counts in (
        ("diverged", [len(row.diverged) for row in curve.rows]),
        ("at chance", [sum(run.at_chance for run in row.runs) for row in curve.rows]),
    ):
        if where := _spans(names, counts):
            parts.append(f"{word} at {where} ({sum(counts)} run{'s' if sum(counts) > 1 else ''})")
    return f"{curve.label}: {'; '.join(parts)}"


def _spans(names: Sequence[str], counts: Sequence[int]) -> str:
    """The names with a count above 0; neighbours as ``first to last``.

    Example:
        >>> _spans(["1", "10", "100", "1000"], [1, 0, 2, 1])
        '1, 100 to 1000'
    """
    spans: list[list[str]] = []
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        if count and i and counts[i - 1]:
            spans[-1][1:] = [name]
        elif count:
            spans.append([name])
    return ", ".join(" to ".join(span) for span in spans)
