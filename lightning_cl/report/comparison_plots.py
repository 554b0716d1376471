"""The figures of a comparison: methods on one stream over seeds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .compute_plot import against_share
from .lambda_curves import lambda_curves
from .lambda_plot import against_lambda
from .row import ComparisonRow
from .statistic import Statistic
from .style import INK, SOFT, axes, figure, legend, plain, series, task_ticks
from .text import short_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_BARS, MOST_LINES = 25, 10


def comparison_figures(rows: Sequence[ComparisonRow]) -> dict[str, "Figure"]:
    """All figures for which the ranked rows of one stream have data, by file name without suffix."""
    ranked = [row for row in rows if row.average_accuracy.n]
    if not ranked:
        return {}
    figures = {}
    if curves_of_lambda := lambda_curves(rows)[:MOST_LINES]:
        figures["accuracy_against_lambda"] = against_lambda(curves_of_lambda)
    figures["average_accuracy"] = bars(ranked[:MOST_BARS])
    if any(sum(point.n > 0 for point in row.curve) > 1 for row in ranked):
        figures["accuracy_over_tasks"] = curves(ranked[:MOST_LINES])
    if any(row.flops.n for row in ranked[:MOST_LINES]):
        figures["accuracy_against_flops"] = cost(ranked[:MOST_LINES])
    if any(row.compute_share.n for row in ranked):
        figures["accuracy_against_share"] = against_share(ranked)
    return figures


def bars(rows: Sequence[ComparisonRow]) -> "Figure":
    """Mean average accuracy per row, its sd as error bar and every seed as a dot; the best on top."""
    fig = figure(5.8, max(3.6, 1.3 + 0.34 * len(rows)))
    ax = axes(fig, f"Average {_metric(rows)}", _spread(rows), grid="x")
    for i, row in enumerate(rows):
        color = series(i)["color"] if i < MOST_LINES else SOFT
        mean, sd = _scaled(row, row.average_accuracy)
        ax.barh(i, mean, height=0.62, color=color, alpha=0.85)
        if sd:
            ax.errorbar(mean, i, xerr=sd, color=INK, capsize=3, linewidth=1.3)
        if row.n > 1:
            points = [value * _factor(row) for value in row.average_accuracy.values]
            ax.plot(points, [i] * row.n, linestyle="", marker="o", markersize=3.2, color=INK, alpha=0.55)
        text = row.average_accuracy.text(lambda value, run=row.example: run.show(value, 1))  # type: ignore[misc]
        edge = max([mean + (sd or 0), *(v * _factor(row) for v in row.average_accuracy.values)])
        place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(text.removesuffix(" ± -"), (edge, i), **place, fontsize=8.5, color=INK)
    ax.set_yticks(range(len(rows)), _labels(rows))
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.invert_yaxis()
    right = ax.get_xlim()[1]
    # room for the numbers behind the bars
    ax.set_xlim(0, right * 1.2)
    if rows[0].example.higher_is_better:
        ax.set_xlim(0, 122)
        ax.set_xticks(range(0, 101, 20))
    return fig


def curves(rows: Sequence[ComparisonRow]) -> "Figure":
    """Mean average accuracy after each task, with a band of one sd; a dashed line for what has a final value only."""
    fig = figure(5.8, 4.4)
    ax = axes(fig, f"Average {_metric(rows)} over the stream", "after learning")
    for i, (row, label) in enumerate(zip(rows, _labels(rows), strict=True)):
        style, curve = series(i), [_scaled(row, point) for point in row.curve]
        known = [x for x, (mean, _) in enumerate(curve) if mean == mean]
        if len(known) == 1 and len(curve) > 1:
            ax.axhline(curve[known[0]][0], color=style["color"], linewidth=1.5, linestyle=(0, (6, 3)), label=label)
            continue
        means = [mean for mean, _ in curve]
        style |= {"marker": ""} if len(curve) > 15 else {}
        ax.plot(range(len(curve)), means, **style, linewidth=1.9, markersize=4.5, label=label)
        low = [mean - (sd or 0) for mean, sd in curve]
        high = [mean + (sd or 0) for mean, sd in curve]
        ax.fill_between(range(len(curve)), low, high, color=style["color"], alpha=0.16, linewidth=0)
    if rows[0].example.higher_is_better:
        ax.set_ylim(-3, 103)
    task_ticks(ax, rows[0].example.task_names)
    legend(ax)
    return fig


def cost(rows: Sequence[ComparisonRow]) -> "Figure":
    """Average accuracy against operations, both with sd; up and left is better."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    fig = figure(5.8, 4.4)
    ax = axes(
        fig, f"Average {_metric(rows)} against compute", "FLOPs for the whole stream, without evaluation", "", "both"
    )
    means: list[float] = []
    for i, (row, label) in enumerate(zip(rows, _labels(rows), strict=True)):
        if row.flops.mean is None:
            continue
        style = {"color": series(i)["color"], "marker": series(i)["marker"], "linestyle": ""}
        mean, sd = _scaled(row, row.average_accuracy)
        ax.errorbar(row.flops.mean, mean, xerr=row.flops.sd, yerr=sd, color=style["color"], capsize=3, linewidth=1.3)
        ax.plot(row.flops.mean, mean, **style, markersize=8, label=label)
        means.append(row.flops.mean)
    if min(means) > 0 and max(means) > 8 * min(means):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(means) < 200 * min(means) else (1,)))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.set_xlim(0, 1.15 * max(means) or 1)
    ax.xaxis.set_major_formatter(EngFormatter(sep=" "))
    if rows[0].example.higher_is_better:
        ax.set_ylim(-3, 103)
    legend(ax)
    return fig


def _labels(rows: Sequence[ComparisonRow]) -> list[str]:
    """Short, and still told apart."""
    return [plain(label) for label in short_labels([row.label for row in rows], 30)]


def _factor(row: ComparisonRow) -> float:
    return 100.0 if row.example.higher_is_better else 1.0


def _scaled(row: ComparisonRow, figure: Statistic) -> tuple[float, Any]:
    factor = _factor(row)
    mean = float("nan") if figure.mean is None else factor * figure.mean
    return mean, None if figure.sd is None else factor * figure.sd


def _metric(rows: Sequence[ComparisonRow]) -> str:
    run = rows[0].example
    return run.metric + run.percent


def _spread(rows: Sequence[ComparisonRow]) -> str:
    return "mean ± sd over seeds; dots: single seeds" if any(row.n > 1 for row in rows) else ""
