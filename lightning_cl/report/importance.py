"""Importances made readable: a table for the terminal, figures, a page, and a section of a run's page."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import a_console, a_table, cell, middle_out, titled
from .files import write_atomic
from .html import render, save_figures
from .style import GRID, INK, SOFT, axes, figure, plain, png, series
from .text import DASH, decimal, number, short_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

MOST_BARS = 30
Rows = Sequence[Mapping[str, Any]]
COLUMNS = ("parameter", "shape", "mean", "max", "sum", "share (%)", "zeros (%)")
_CAPTIONS = {
    "share": "Part of the sum of all importances that each parameter holds.",
    "distribution": "Positive values: median (dot), middle half (bar), 5 to 95 % (line).",
}


def importance_lines(rows: Rows) -> list[list[str]]:
    """Cells of the table, as text, one list per parameter.

    Args:
        rows: What :func:`lightning_cl.functional.summarize_importance` returned.
    """
    return [
        [
            str(row.get("name")),
            " x ".join(map(str, row.get("shape") or [])) or "1",
            *(_figure(row.get(key)) for key in ("mean", "max", "sum")),
            _percent(number(row.get("share"))),
            _percent(_zeros(row)),
        ]
        for row in rows
    ]


def importance_table(rows: Rows, title: str, console: "Console | None" = None) -> None:
    """Print one line per parameter; of very many, those at both ends.

    Args:
        rows: What :func:`lightning_cl.functional.summarize_importance` returned.
        title: Said above the table.
        console: Where to print; standard output by default.
    """
    console, lines = a_console(console), importance_lines(rows)
    table = a_table()
    for name in COLUMNS:
        left = name == "parameter"
        table.add_column(name, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for i in middle_out(len(lines), 200):
        table.add_row(*(map(cell, lines[i]) if i is not None else ["…"] * len(COLUMNS)))
    console.print(titled(title, table))


def importance_figures(rows: Rows) -> dict[str, "Figure"]:
    """``share`` and ``distribution``, as far as the rows have data for them."""
    shown = _shown(rows)
    figures = {}
    for name, draw in _drawn(shown).items():
        figures[name] = figure(5.8, _height(shown))
        draw(figures[name], shown)
    return figures


def share(fig: Any, rows: Rows) -> None:
    """Bars: each parameter's part of the total, in the order of the network from the top."""
    ax = _per_parameter(fig, rows, "Share of the importance (%)")
    values = [100 * (number(row.get("share")) or 0.0) for row in rows]
    ax.barh(range(len(rows)), values, height=0.68, color=series(0)["color"], alpha=0.85)
    for i, value in enumerate(values):
        place: dict[str, Any] = {"xytext": (5, 0), "textcoords": "offset points", "va": "center"}
        ax.annotate(_percent(value / 100), (value, i), **place, fontsize=8.5, color=INK)
    ax.set_xlim(0, 1.16 * max(values))


def distribution(fig: Any, rows: Rows) -> None:
    """Quantiles of each parameter's positive values on a logarithmic axis, in the order of the network from the top."""
    from matplotlib.ticker import NullLocator

    ax = _per_parameter(fig, rows, "Distribution of the importance")
    ax.set_xscale("log")
    ax.xaxis.set_minor_locator(NullLocator())
    color = series(0)["color"]
    for i, row in enumerate(rows):
        if not row.get("log10_quantiles"):
            ax.annotate("all zero", (0.01, i), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=SOFT)
            continue
        low, first, median, third, high = (10.0 ** float(q) for q in row["log10_quantiles"])
        ax.plot([low, high], [i, i], color=color, linewidth=1.2, solid_capstyle="butt")
        ax.plot([first, third], [i, i], color=color, linewidth=6.5, alpha=0.45, solid_capstyle="butt")
        ax.plot(median, i, marker="o", markersize=4.5, color=color)


def _drawn(rows: Rows) -> "dict[str, Callable[[Any, Rows], None]]":
    found: dict[str, Callable[[Any, Rows], None]] = {}
    if any(number(row.get("share")) for row in rows):
        found["share"] = share
    if any(row.get("log10_quantiles") for row in rows):
        found["distribution"] = distribution
    return found


def _height(rows: Rows) -> float:
    return max(2.6, 1.0 + 0.27 * len(rows))


def _per_parameter(fig: Any, rows: Rows, title: str) -> "Axes":
    ax = axes(fig, title, grid="x")
    ax.set_yticks(range(len(rows)), [plain(name, 30) for name in short_labels([str(r["name"]) for r in rows], 30)])
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    if len(rows) > 12:
        for i in range(len(rows)):
            ax.axhline(i, color=GRID, linewidth=0.5, zorder=0)
    return ax


def importance_section(rows: Rows, name: str, folder: Path | None = None, prefix: str = "") -> dict[str, Any]:
    """What the template ``importance.html.j2`` needs to show one importance.

    Args:
        rows: What :func:`lightning_cl.functional.summarize_importance` returned.
        name: Of the method that has it, or of the file; may be empty.
        folder: Where the figures are written too; nowhere by default.
        prefix: Of their file names.
    """
    uris = save_figures({f"{prefix}_{key}": fig for key, fig in importance_figures(rows).items()}, folder)
    keys = [key.removeprefix(f"{prefix}_") for key in uris]
    shown = f" The {MOST_BARS} parameters with the largest share." if len(rows) > MOST_BARS else ""
    return {
        "name": name,
        "columns": COLUMNS,
        "lines": importance_lines(rows),
        "total": _figure(sum(number(row.get("sum")) or 0.0 for row in rows)),
        "size": f"{sum(int(number(row.get('size')) or 0) for row in rows):,}",
        "figures": [
            (f"Importance, {key}", uri, _CAPTIONS[key] + shown) for key, uri in zip(keys, uris.values(), strict=True)
        ],
    }


def write_importance_page(rows: Rows, title: str, facts: Sequence[str], path: Path) -> Path:
    """Write a page with table and figures, one file with everything in it.

    Args:
        rows: What :func:`lightning_cl.functional.summarize_importance` returned.
        title: The page's.
        facts: Said under the title.
        path: The page.

    Raises:
        InputError: It cannot be written.
    """
    section = importance_section(rows, "")
    page = render("importance_page.html.j2", title=title, facts=facts, importances=[section])
    return write_atomic(path, page)


def write_importance_plot(rows: Rows, path: Path) -> Path:
    """Write both figures as one image.

    Args:
        rows: What :func:`lightning_cl.functional.summarize_importance` returned.
        path: The image; a PNG whatever its name.

    Raises:
        InputError: It cannot be written.
    """
    shown = _shown(rows)
    drawn = _drawn(shown)
    fig = figure(5.8 * max(len(drawn), 1), _height(shown))
    for part, draw in zip(fig.subfigures(1, max(len(drawn), 1), squeeze=False)[0], drawn.values(), strict=False):
        draw(part, shown)
    return write_atomic(path, png(fig))


def _shown(rows: Rows) -> list[Mapping[str, Any]]:
    """At most ``MOST_BARS`` parameters, those with the largest share, in the order of the network."""
    largest = sorted(range(len(rows)), key=lambda i: -(number(rows[i].get("share")) or 0.0))[:MOST_BARS]
    return [rows[i] for i in sorted(largest)]


def _zeros(row: Mapping[str, Any]) -> float | None:
    zeros, size = number(row.get("zeros")), number(row.get("size"))
    return zeros / size if zeros is not None and size else None


def _percent(fraction: float | None) -> str:
    """One decimal; two digits of what would be 0.0."""
    if fraction is None or not 0 < abs(100 * fraction) < 0.05:
        return decimal(None if fraction is None else 100 * fraction, 1)
    return f"{100 * fraction:.1g}"


def _figure(value: Any) -> str:
    known = number(value)
    return DASH if known is None else f"{known:.3g}"
