"""The comparison of runs, for the terminal."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from .console import a_console, a_table, cell, titled
from .floors import floor_lines, percent, role
from .lambda_curves import lambda_curves, lambda_line
from .row import ComparisonRow
from .run import Run
from .selection import by_lambda, scores
from .text import DASH, decimal, flops, flops_in

if TYPE_CHECKING:
    from rich.console import Console


def by_stream(rows: Sequence[ComparisonRow]) -> list[tuple[str, list[ComparisonRow]]]:
    """Rows in the order of ``comparison_table``, with a heading for each stream."""
    groups = groupby(rows, key=lambda row: (row.stream, row.scenario, row.example.metric, row.example.higher_is_better))
    found = []
    for (stream, scenario, metric, _), members in groups:
        heading = f"{stream}, {scenario}" if scenario != "None" else stream
        found.append((heading if metric == "accuracy" else f"{heading}, {metric}", list(members)))
    return found


def columns(rows: Sequence[ComparisonRow]) -> list[tuple[str, list[str]]]:
    """Headings and cells of one stream's table, as text; the column of validation only if there is any."""
    percent, show = rows[0].example.percent, rows[0].example.show

    def spread(name: str) -> list[str]:
        return [getattr(row, name).text(show) for row in rows]

    table = [
        ("#", [str(row.rank or "-") for row in rows]),
        ("method", [_method(row) for row in rows]),
        ("n", [str(row.n) for row in rows]),
        (
            f"average {rows[0].example.metric}{percent}",
            ["diverged" if row.diverged and not row.n else row.average_accuracy.text(show) for row in rows],
        ),
        (f"forgetting{percent}", spread("forgetting")),
        (f"learning accuracy{percent}", spread("learning_accuracy")),
        (f"average incremental{percent}", spread("average_incremental_accuracy")),
    ]
    if any(row.validation_average.n for row in rows):
        table.append((f"validation{percent}", spread("validation_average")))
    seconds = [row.train_seconds.text(lambda value: decimal(value, 1)) for row in rows]
    return [*table, ("train seconds", seconds), ("compute", [_operations(row) for row in rows]), *_share(rows)]


def _share(rows: Sequence[ComparisonRow]) -> list[tuple[str, list[str]]]:
    """The column of shares of joint's compute, if any is known."""
    if not any(row.compute_share.n for row in rows):
        return []
    return [("share of joint", [percent(row.compute_share.mean) for row in rows])]


def _method(row: ComparisonRow) -> str:
    return f"{row.label} [{role(row)}]" if role(row) else row.label


def _operations(row: ComparisonRow) -> str:
    """Mean and sd in the mean's unit, which is written once."""
    mean = row.flops.mean
    if mean is None:
        return DASH
    unit = flops(mean).split()[1]
    return f"{row.flops.text(lambda value: decimal(value / flops_in(unit)))} {unit}"


def validation_lines(rows: Sequence[ComparisonRow]) -> list[str]:
    """For each method with several validated configurations, which one is best on validation data.

    Where lambda was varied there is one line for each of the method's other settings too.
    """
    curves = lambda_curves(rows)
    lines = [lambda_line(curve) for curve in curves]
    for method in dict.fromkeys(row.method for row in rows):
        best = by_lambda([row for row in rows if row.method == method and row.best_on_validation])
        # one curve has said it already
        if best and [curve.method for curve in curves].count(method) != 1:
            lines.append(f"{method}: best on validation is {best[0].settings_text} ({scores(best)})")
    return lines


def unfinished_lines(rows: Sequence[ComparisonRow]) -> list[str]:
    """One line for each run that is not counted, and one for all that diverged with the same settings."""
    lines = []
    for row in rows:
        if diverged := row.diverged:
            count = f"{len(diverged)} runs" if len(diverged) > 1 else "one run"
            lines.append(f"{row.label}: {count} diverged ({_error(diverged[0])}), not counted: {diverged[0].folder}")
        for run in row.unfinished:
            if not run.diverged:
                error = f" ({_error(run)})" if run.results.get("error") else ""
                lines.append(f"{row.label}: {run.status}{error}, not counted: {run.folder}")
    return lines


def _error(run: Run) -> str:
    return " ".join(str(run.results.get("error")).split()).partition("; expected ")[0]


def print_comparison(rows: Sequence[ComparisonRow], console: "Console | None" = None) -> None:
    """Print one ranked table per stream; a narrow terminal gets fewer columns.

    Args:
        rows: What ``comparison_table`` returned.
        console: Where to print; standard output by default.
    """
    from rich.measure import Measurement

    console = a_console(console)
    for heading, members in by_stream(rows):
        shown = columns(members)
        # least telling first; they stay in the page
        for spare in ("average incremental", "learning accuracy", "compute", "train seconds", "share of joint", None):
            table = a_table()
            for name, _ in shown:
                left = name == "method"
                table.add_column(cell(name), justify="left" if left else "right", no_wrap=not left, overflow="fold")
            for line in zip(*(cells for _, cells in shown), strict=True):
                table.add_row(*map(cell, line))
            needed = Measurement.get(console, console.options.update(max_width=999), table).maximum
            if spare is None or needed <= console.width:
                break
            shown = [(name, cells) for name, cells in shown if not name.startswith(spare)]
        console.print(titled(heading, table))
        for note in [*floor_lines(members), *validation_lines(members), *unfinished_lines(members)]:
            console.print(cell(note), soft_wrap=True)
