"""Validation and test metric against lambda."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .lambda_curves import LambdaCurve
from .row import ComparisonRow
from .statistic import Statistic
from .style import INK, axes, figure, legend, plain, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAN = float("nan")


def against_lambda(curves: Sequence[LambdaCurve]) -> "Figure":
    """One line per curve and kind of data on a logarithmic axis, with bands of one sd over seeds."""
    run = curves[0].rows[0].example
    fig = figure(5.8, 4.7)
    ax = axes(fig, f"Average {run.metric}{run.percent} against lambda", "lambda", grid="both")
    ax.set_xscale("log")
    for i, curve in enumerate(curves):
        style = series(i)
        values = [value for value, _ in curve.points]
        for name, dashes, alpha in (("average_accuracy", (0, (4, 2)), 0.07), ("validation_average", "-", 0.16)):
            line = [_scaled(row, getattr(row, name)) for _, row in curve.points]
            if all(mean != mean for mean, _ in line):
                continue
            low, high = [mean - sd for mean, sd in line], [mean + sd for mean, sd in line]
            ax.fill_between(values, low, high, color=style["color"], alpha=alpha, linewidth=0)
            solid = dashes == "-"
            kind: dict[str, Any] = {"linestyle": dashes, "marker": style["marker"], "markersize": 4 if solid else 2.5}
            ax.plot(values, [mean for mean, _ in line], color=style["color"], linewidth=2 if solid else 1.3, **kind)
        ax.plot([], [], **style, linewidth=2, markersize=4, label=plain(curve.label, 60))
        _marks(ax, curve, style["color"], 0.03 + 0.035 * i)
        for text, row in curve.others:
            mean = _scaled(row, row.validation_average if row.validation_average.n else row.average_accuracy)[0]
            label = plain(f"{curve.label}, lambda {text}", 66)
            ax.axhline(mean, color=style["color"], linewidth=1.2, linestyle=(0, (1, 1.5)), label=label)
    legend(ax)
    return fig


def _marks(ax: "Axes", curve: LambdaCurve, color: str, height: float) -> None:
    best = curve.best
    for value, row in curve.points:
        shown = row.validation_average if row.validation_average.n else row.average_accuracy
        if any(run.at_chance for run in row.runs):
            ring: dict[str, Any] = {"marker": "o", "markersize": 10, "markerfacecolor": "none"}
            ax.plot(value, _scaled(row, shown)[0], color=color, markeredgewidth=1.2, linestyle="", **ring)
        if row.diverged:
            place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "clip_on": False, "zorder": 6}
            ax.plot(value, height, marker="x", markersize=8, markeredgewidth=2, color=color, **place)
        if best and row is best[0]:
            star: dict[str, Any] = {"marker": "*", "markersize": 15, "markeredgecolor": INK, "zorder": 7}
            ax.plot(value, _scaled(row, shown)[0], color=color, linestyle="", **star)


def _scaled(row: ComparisonRow, shown: Statistic) -> tuple[float, float]:
    factor = 100.0 if row.example.higher_is_better else 1.0
    return _NAN if shown.mean is None else factor * shown.mean, factor * (shown.sd or 0.0)
