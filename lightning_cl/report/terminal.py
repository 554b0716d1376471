"""Tables of one run, for the terminal."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import a_console, a_table, cell, middle_out, titled
from .floors import trivial_run
from .run import Run
from .text import duration, number, short_labels

if TYPE_CHECKING:
    from rich.console import Console, Group

_NAME = 14
BOUNDS = {"naive": "naive (lower bound)", "joint": "joint (upper bound)"}


def labelled(name: str, run: Run) -> str:
    """A method's name, and what it bounds; in a single task nothing is forgotten, and joint is naive."""
    return BOUNDS.get(name, name) if len(run.task_names) > 1 else name


def task_table(results: dict[str, Any], console: "Console | None" = None) -> None:
    """Print where a run stands after its latest task: metric on each task seen, average, forgetting, seconds.

    Args:
        results: The content of ``results.json`` so far.
        console: Where to print; standard output by default.
    """
    run, console = Run(results), a_console(console)
    last = run.learned - 1
    if last < 0:
        console.print(cell(f"{run.method} on {run.stream}: no task learned yet"))
        return
    names, row = run.task_names, run.matrix[last]
    where = f"after task {last + 1} of {len(names)} ({names[last]})"
    table = a_table()
    short = short_labels(names, _NAME)
    widths = [max(len(name), 6) + 3 for name in short[: last + 1]]
    shown = middle_out(last + 1, max((console.width - 40) // max(widths), 3))
    cells = []
    for j in shown:
        table.add_column(cell("…" if j is None else short[j]), justify="right", no_wrap=True)
        cells.append("…" if j is None else run.show(row[j]))
    tasks = run.results.get("per_task") or []
    seconds = (tasks[last].get("seconds") or {}) if last < len(tasks) else {}
    spent = [
        value for phase in ("train", "consolidate", "evaluate") if (value := number(seconds.get(phase))) is not None
    ]
    summary = {
        "average": run.show(run.average_accuracy),
        "forgetting": run.show(run.forgetting),
        "time": duration(sum(spent) if spent else None),
    }
    for heading in summary:
        table.add_column(heading, justify="right", style="bold" if heading == "average" else None, no_wrap=True)
    table.add_row(*map(cell, [*cells, *summary.values()]))
    console.print(titled(f"{run.method} on {run.stream}: {run.metric}{run.percent} {where}", table))


def matrix_table(results: dict[str, Any], console: "Console | None" = None, report: Path | None = None) -> None:
    """Print the final matrix (rows: after learning; columns: tested on) beside the summary and the bounds.

    Args:
        results: The content of ``results.json``.
        console: Where to print; standard output by default.
        report: The report's path, said in the last line.
    """
    from rich.measure import Measurement
    from rich.table import Table

    run, console = Run(results), a_console(console)
    summary = _summary(run)
    beside = Measurement.get(console, console.options, summary).maximum + 4
    matrix = _matrix(run, console.width)
    width = Measurement.get(console, console.options, matrix).maximum
    if width + beside <= console.width:
        both = Table.grid(padding=(0, 4))
        both.add_row(matrix, summary)
        console.print(both)
    else:
        console.print(matrix)
        console.print(summary)
    if trivial := trivial_run(run):
        console.print(cell(trivial), soft_wrap=True)
    if run.status != "finished":
        console.print(cell(f"status: {run.status}, {run.learned} of {len(run.task_names)} tasks learned"))
    if report is not None:
        console.print(cell(f"report: {report}"), soft_wrap=True)


def _matrix(run: Run, room: int) -> "Group":
    names = run.task_names
    short = short_labels(names, _NAME)
    widest = max(map(len, short), default=0)
    shown = middle_out(len(names), max((room - widest - 16) // (max(widest, 5) + 3), 3))
    table = a_table()
    table.add_column("after \\ tested on", no_wrap=True)
    for j in shown:
        table.add_column(cell("…" if j is None else short[j]), justify="right", no_wrap=True)
    for i in shown:
        if i is None:
            table.add_row(*(["…"] * (len(shown) + 1)))
        else:
            table.add_row(cell(short[i]), *("…" if j is None else run.show(run.matrix[i][j], 1) for j in shown))
    return titled(f"{run.method} on {run.stream}: {run.metric}{run.percent}", table)


def _summary(run: Run) -> "Group":
    table = a_table()
    table.add_column("method", no_wrap=True)
    table.add_column(cell(f"average {run.metric}"), justify="right")
    table.add_column("forgetting", justify="right")
    naive, joint = (run.references.get(name) for name in ("naive", "joint"))
    others = [(name, other) for name, other in run.references.items() if name not in BOUNDS]
    lines = [("naive", naive, None), (run.method, run, "bold"), ("joint", joint, None)]
    for name, member, style in [*lines, *((name, other, None) for name, other in others)]:
        if member is not None:
            shown = (run.show(member.average_accuracy), run.show(member.forgetting))
            table.add_row(cell(name if member is run else labelled(name, run)), *shown, style=style)
    return titled(f"After the last task{run.percent}", table)
