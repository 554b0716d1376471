"""The page of a comparison."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .comparison import comparison_table
from .comparison_plots import MOST_BARS, MOST_LINES, comparison_figures
from .comparison_terminal import by_stream, columns, unfinished_lines, validation_lines
from .files import write_atomic
from .floors import floor_lines, role
from .html import render, save_figures
from .lambda_curves import lambda_curves
from .row import ComparisonRow
from .run import Run

_CAPTIONS = {
    "average_accuracy": f"After the last task, mean over tasks. At most the {MOST_BARS} best rows.",
    "accuracy_over_tasks": f"Mean over the tasks seen so far; band: ± sd. At most the {MOST_LINES} best rows.",
    "accuracy_against_flops": "Up and to the left is better. Bars: ± sd over seeds.",
    "accuracy_against_share": "Joint's compute is 100 %: one fit on all tasks' data. Lines join a method's budgets. "
    "Grey: floors. Dashed: joint without a budget.",
    "accuracy_against_lambda": "Solid: validation, dashed: test, band: ± sd over seeds. Star: best on validation. "
    "Cross: diverged. Ring: at chance.",
}


def write_comparison(runs: Sequence[Run], out: Path, rows: Sequence[ComparisonRow] | None = None) -> Path:
    """Write ``comparison.html``, ``.md``, ``.json`` and its figures (``plots/*.png``) into the folder ``out``.

    Args:
        runs: What ``gather`` returned.
        out: The folder; made if it does not exist.
        rows: What ``comparison_table(runs)`` returned, where it is known already.

    Returns:
        The page's path.

    Raises:
        InputError: The folder cannot be written.
    """
    out = Path(out)
    groups = by_stream(comparison_table(runs) if rows is None else rows)
    streams = []
    for i, (heading, members) in enumerate(groups):
        prefix = "comparison_" if len(groups) == 1 else f"comparison_{i + 1}_"
        figures = {prefix + name: figure for name, figure in comparison_figures(members).items()}
        uris = save_figures(figures, out / "plots")
        plain = [(name.removeprefix(prefix), uri) for name, uri in uris.items()]
        names, cells = zip(*columns(members), strict=True)
        streams.append(
            {
                "heading": heading,
                "columns": names,
                "lines": [
                    (line, row.method, row.settings_text, role(row))
                    for line, row in zip(zip(*cells, strict=True), members, strict=True)
                ],
                "figures": [(name.replace("_", " ").capitalize(), uri, _CAPTIONS[name]) for name, uri in plain],
                "validation": [*floor_lines(members), *validation_lines(members)],
                "unfinished": unfinished_lines(members),
                "runs": [_run(row, run, out) for row in members for run in [*row.runs, *row.unfinished]],
                "tasks": len(members[0].example.task_names),
            }
        )
    counted = sum(row.n for _, members in groups for row in members)
    title = f"Comparison of {counted} run{'s' if counted != 1 else ''}"
    write_atomic(out / "comparison.json", json.dumps(_json(groups), indent=1, allow_nan=False) + "\n")
    write_atomic(out / "comparison.md", _markdown(streams))
    return write_atomic(out / "comparison.html", render("comparison.html.j2", title=title, streams=streams))


def _run(row: ComparisonRow, run: Run, out: Path) -> dict[str, Any]:
    page = run.folder / "report.html"
    link = quote(os.path.relpath(page, out).replace(os.sep, "/")) if page.is_file() else None
    return {
        "label": row.label,
        "seed": run.results.get("seed"),
        "status": run.status,
        "average": run.show(run.average_accuracy) + (run.unit if run.average_accuracy is not None else ""),
        "folder": str(run.folder),
        # a colon in the first part of a relative address would be read as its scheme
        "link": f"./{link}" if link else None,
    }


def _json(groups: list[tuple[str, list[ComparisonRow]]]) -> dict[str, Any]:
    return {
        "schema": 1,
        "streams": [
            {
                "stream": members[0].stream,
                "scenario": members[0].scenario,
                "metric": {"name": members[0].example.metric, "higher_is_better": members[0].example.higher_is_better},
                "rows": [row.as_dict() for row in members],
                "lambda_curves": [curve.as_dict() for curve in lambda_curves(members)],
            }
            for _, members in groups
        ],
    }


def _markdown(streams: list[dict[str, Any]]) -> str:
    def safe(text: str) -> str:
        return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(safe, cells))} |"

    parts = []
    for stream in streams:
        rule = "|" + "|".join("---" if name == "method" else "---:" for name in stream["columns"]) + "|"
        parts += [f"## {safe(stream['heading'])}\n", line(stream["columns"]), rule]
        parts += [line(cells) for cells, *_ in stream["lines"]]
        notes = [*stream["validation"], *stream["unfinished"]]
        parts += ["", *(f"- {safe(note)}" for note in notes), *([""] if notes else [])]
    return "\n".join(parts).rstrip() + "\n\nMean ± sample standard deviation over n seeds.\n"
