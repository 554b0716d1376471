"""``lightning-cl report DIR...``"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from lightning_cl._parser import Parser
from lightning_cl.errors import InputError

from .comparison import comparison_table
from .comparison_page import write_comparison
from .comparison_terminal import print_comparison
from .finding import find
from .page import write_report
from .row import ComparisonRow
from .run import Run
from .selection import chosen, command_line
from .terminal import matrix_table


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="lightning-cl report",
        description="One run: write its report.html anew. Several runs: compare them in a table ranked by average "
        "accuracy, with mean and standard deviation over seeds, and in comparison.html, .md and .json.",
    )
    parser.add_argument(
        "paths", metavar="DIR", nargs="+", type=Path, help="a run folder, or a folder of runs, however deep"
    )
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="where to write (default: the run's folder; for a comparison DIR if only one is given, else ./comparison)",
    )
    parser.add_argument(
        "--best",
        action="store_true",
        help="write nothing; print the overrides of the configuration that is best on validation data, without its "
        "seed, for scripts: lightning-cl -m $(lightning-cl report DIR --best) validation_fraction=0 seed=5,6,7",
    )
    parser.add_argument("--json", action="store_true", help="with --best: its folders, settings and figures, as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``report``; those of the process by default.

    Returns:
        0, or 2 for bad input, after one line about it on standard error.
    """
    try:
        arguments = _parser().parse_args(argv)
        if arguments.json and not arguments.best:
            raise InputError("--json without --best", "both", "comparison.json and results.json hold everything else")
        if arguments.best:
            _best(arguments.paths, arguments.json)
        else:
            _report(arguments.paths, arguments.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # --help
        return int(end.code or 0)
    return 0


def _report(paths: list[Path], output: Path | None) -> None:
    runs, unreadable = find(paths)
    for line in unreadable:
        print(f"warning: left out: {line}", file=sys.stderr)
    if len(runs) == 1:
        page = write_report(runs[0].folder, output)
        matrix_table(runs[0].results, report=page)
        return
    rows = _rows(runs)
    if output is None:
        output = paths[0] if len(paths) == 1 and paths[0].is_dir() else Path("comparison")
    page = write_comparison(runs, output, rows)
    print_comparison(rows)
    print(f"comparison: {page}")


def _best(paths: list[Path], as_json: bool) -> None:
    runs, unreadable = find(paths)
    for line in unreadable:
        print(f"warning: left out: {line}", file=sys.stderr)
    found = chosen(_rows(runs))
    print(json.dumps(found, indent=1) if as_json else command_line(found))


def _rows(runs: list[Run]) -> list[ComparisonRow]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        rows = comparison_table(runs)
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    return rows
