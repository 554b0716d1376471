"""Accuracy against the share of joint's compute."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .floors import FLOORS, role
from .row import ComparisonRow
from .style import INK, SOFT, axes, figure, legend, plain, series

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 10


def against_share(rows: Sequence[ComparisonRow]) -> "Figure":
    """Average accuracy against compute in % of joint's, one series per method (its best ones); floors in grey."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    run = rows[0].example
    factor = 100.0 if run.higher_is_better else 1.0
    fig = figure(5.8, 4.6)
    title, x = f"Average {run.metric}{run.percent} against compute", "compute of training, % of joint's"
    ax = axes(fig, title, x, "", "both")
    known = [row for row in rows if row.compute_share.mean and row.average_accuracy.mean is not None]
    names = list(dict.fromkeys(row.method for row in known))
    floors = [name for name in FLOORS if name in names]
    others = [name for name in names if name not in FLOORS][: MOST - len(floors)]
    for i, name in enumerate([*others, *floors]):
        members = sorted((row for row in known if row.method == name), key=lambda row: row.compute_share.mean or 0.0)
        xs = [100 * (row.compute_share.mean or 0.0) for row in members]
        ys = [factor * (row.average_accuracy.mean or 0.0) for row in members]
        errors = [factor * (row.average_accuracy.sd or 0.0) for row in members]
        style = series(i)
        floor = name in FLOORS
        color = SOFT if floor else style["color"]
        # other settings than the budget make other points, which no line joins
        lined = len({row.example.budget for row in members}) == len(members) > 1
        ax.errorbar(
            xs,
            ys,
            yerr=errors if any(errors) else None,
            color=color,
            linestyle="",
            capsize=3,
            linewidth=1.2,
            zorder=3 - floor,
        )
        ax.plot(
            *(xs, ys), color=color, marker=style["marker"], markersize=7, linewidth=1.4, zorder=3 - floor,
            linestyle=((0, (1.5, 1.5)) if floor else "-") if lined else "",
            markerfacecolor="white" if floor else color, label=plain(f"{name} (floor)" if floor else name, 30),
        )  # fmt: skip
    bounds = [row for row in known if role(row) == "bound"]
    if bounds:
        best = factor * (bounds[0].average_accuracy.mean or 0.0)
        ax.axhline(best, color=INK, linewidth=1.0, linestyle=(0, (6, 3)), zorder=0)
    shares = [100 * (row.compute_share.mean or 0.0) for row in known]
    if max(shares) > 5 * min(shares):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(min(shares) / 1.4, max(shares) * 1.4)
    else:
        ax.set_xlim(0, 1.15 * max(shares))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if run.higher_is_better:
        ax.set_ylim(-3, 103)
    legend(ax)
    return fig
