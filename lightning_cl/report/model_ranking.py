"""A ranking of pretrained models made readable: a table for the terminal, a figure, a page."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import a_console, a_table, cell, titled
from .files import write_atomic
from .html import render, save_figures
from .style import INK, SOFT, axes, figure, plain, png, series
from .text import DASH, decimal, number, short_labels, shorten, size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

Found = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]
COLUMNS = (
    *("#", "candidate", "mean rank", "LogME", "rank", "probe (%)", "rank", "kNN (%)", "rank"),
    *("ms / sample", "parameters", "size", "width"),
)
_SCORES = (("logme", "LogME"), ("probe", "Linear probe (%)"), ("knn", "Nearest neighbours (%)"))
_LEFT = (1,)


def ranking_lines(found: Found) -> list[list[str]]:
    """Cells of the table, as text, one list per candidate that works.

    Args:
        found: What :func:`lightning_cl.selection.select_models` returned.
    """
    lines = []
    for place, row in enumerate(_works(found), 1):
        scores: list[str] = []
        for key, _ in _SCORES:
            value = number(row[key])
            scores += [
                decimal(value, 4) if key == "logme" else decimal(value and 100 * value, 1),
                _rank(row["ranks"][key]),
            ]
        lines.append(
            [
                *(str(place), str(row["name"]), decimal(row["mean_rank"], 2)),
                *scores,
                _milliseconds(row),
                f"{row['parameters']:,}",
                *(size(row["bytes"]), str(row["width"])),
            ]
        )
    return lines


def ranking_facts(found: Found) -> list[str]:
    """What was compared on, in a few words each."""
    if not _works(found):
        return []
    samples, available = found["samples"], found["available"]
    held = found.get("validation_samples")
    facts = [
        f"stream {found['stream']}",
        f"{samples:,} samples" if samples == available else f"{samples:,} of {available:,} samples, class-balanced",
        f"{found['classes']} classes, the largest {100 * found['majority']:.1f} %",
        f"scored on {held:,} validation samples" if held else f"{found['folds']} folds, neighbours leave-one-out",
        f"k = {found['k']}",
    ]
    agreement = number(found.get("agreement"))
    return facts if agreement is None else [*facts, f"agreement of the three ranks (Kendall's W) {agreement:.2f}"]


def ranking_table(found: Found, console: "Console | None" = None) -> None:
    """Print one line per candidate, the best first, and the reasons of those that do not work.

    Args:
        found: What :func:`lightning_cl.selection.select_models` returned.
        console: Where to print; standard output by default.
    """
    console = a_console(console)
    table = a_table()
    for place, name in enumerate(COLUMNS):
        left = place in _LEFT
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for line in ranking_lines(found):
        table.add_row(*map(cell, line))
    failed = _failed(found)
    if table.row_count:
        console.print(titled("Models, " + ", ".join(ranking_facts(found)), table))
    for name, reason in failed:
        console.print(cell(f"{DASH} {name}: {shorten(reason, 170)}"), soft_wrap=True)


def ranking_figure(found: Found) -> "Figure":
    """A panel for each score, points for LogME and bars for accuracies; random weights are pale."""
    works = _works(found)
    fig = figure(11.0, max(2.6, 1.2 + 0.46 * len(works)))
    parts: Any = fig.subfigures(1, 3, width_ratios=[1.75, 1, 1])
    for i, (part, (key, title)) in enumerate(zip(parts, _SCORES, strict=True)):
        ax = axes(part, title, grid="x")
        (_points if key == "logme" else _bars)(ax, works, key, series(i)["color"])
        if key != "logme":
            ax.axvline(100 * found["majority"], color=SOFT, linewidth=1.1, linestyle=(0, (3, 2)))
        ax.set_yticks(range(len(works)), _labels(works) if i == 0 else [""] * len(works))
        ax.tick_params(axis="y", length=0, labelcolor=INK)
        ax.set_ylim(len(works) - 0.4, -0.6)
    return fig


def _points(ax: "Axes", works: Rows, key: str, color: str) -> None:
    """Values without a natural zero."""
    from matplotlib.ticker import MaxNLocator

    values = [float(row[key]) for row in works]
    room = (max(values) - min(values)) or 1.0
    ax.set_xlim(min(values) - 0.15 * room, max(values) + 0.45 * room)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    for place, (value, row) in enumerate(zip(values, works, strict=True)):
        face = "white" if is_baseline(row) else color
        ax.plot(value, place, marker="o", markersize=9, color=color, markerfacecolor=face, markeredgewidth=1.6)
        _number(ax, value, place, decimal(value, 3), 9)


def _bars(ax: "Axes", works: Rows, key: str, color: str) -> None:
    """Percentages."""
    values = [100 * float(row[key]) for row in works]
    for bar, row in zip(ax.barh(range(len(works)), values, height=0.62, color=color, alpha=0.85), works, strict=True):
        if is_baseline(row):
            bar.set(alpha=0.4, hatch="///", edgecolor=color)
    for place, value in enumerate(values):
        _number(ax, value, place, decimal(value, 1), 4)
    ax.set_xlim(0, 119)
    ax.set_xticks(range(0, 101, 20))


def _number(ax: "Axes", value: float, place: int, text: str, away: int) -> None:
    at: dict[str, Any] = {"xytext": (away, 0), "textcoords": "offset points", "va": "center"}
    ax.annotate(text, (value, place), **at, fontsize=8.5, color=INK)


def _labels(works: Rows) -> list[str]:
    """Names, of files without their folder, and what the model costs."""
    shown = [re.sub(r"(?<=[@:])/[^\s@]*/(?=[^/\s])", "", str(row["name"])) for row in works]
    names = shown if len(set(shown)) == len(works) else [str(row["name"]) for row in works]
    return [f"{plain(name, 46)}\n{_cost(row)}" for name, row in zip(short_labels(names, 46), works, strict=True)]


def _cost(row: Mapping[str, Any]) -> str:
    return f"{_milliseconds(row)} ms a sample, {size(row['bytes'])}"


def _milliseconds(row: Mapping[str, Any]) -> str:
    seconds = number(row["seconds_per_sample"])
    return DASH if seconds is None else f"{1000 * seconds:.3g}"


def is_baseline(row: Mapping[str, Any]) -> bool:
    """Whether a candidate is a network with random weights, for comparison."""
    return str(row["name"]).split()[0].endswith(":random")


def write_ranking_plot(found: Found, path: Path) -> Path:
    """Write the figure as a PNG.

    Raises:
        InputError: It cannot be written.
    """
    return write_atomic(path, png(ranking_figure(found)))


def write_ranking_page(found: Found, path: Path) -> Path:
    """Write a page with table and figure, one file with everything in it.

    Raises:
        InputError: It cannot be written.
    """
    uris = save_figures({"ranking": ranking_figure(found)}, None)
    page = render(
        "model_ranking.html.j2",
        title=f"Models for {found['stream']}",
        facts=ranking_facts(found),
        columns=COLUMNS,
        left=_LEFT,
        lines=ranking_lines(found),
        failed=_failed(found),
        figure=uris["ranking"],
        best=" ".join(_works(found)[0]["overrides"]),
    )
    return write_atomic(path, page)


def _works(found: Found) -> list[Mapping[str, Any]]:
    return [row for row in found["candidates"] if "error" not in row]


def _failed(found: Found) -> list[tuple[str, str]]:
    return [(str(row["name"]), str(row["error"])) for row in found["candidates"] if "error" in row]


def _rank(value: float) -> str:
    return f"{value:g}"
