"""``lightning-cl soup``"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl._parser import Parser


def main(argv: Sequence[str]) -> int:
    """Run the subcommand.

    Args:
        argv: Arguments after ``soup``.

    Raises:
        InputError: For bad input.
    """
    parser = Parser(
        prog="lightning-cl soup",
        description="Average the models of finished runs that started from the same weights into one checkpoint.",
    )
    parser.add_argument("runs", metavar="DIR", nargs="+", type=Path, help="run folders, or a sweep's folder")
    parser.add_argument("--out", metavar="FILE", type=Path, default=Path("soup.ckpt"), help="default: soup.ckpt")
    parser.add_argument(
        "--how",
        choices=("uniform", "greedy"),
        default="uniform",
        help="uniform (default): all; greedy: by validation metric, each only if the mean gets no worse",
    )
    given = parser.parse_intermixed_args(list(argv))
    from lightning_cl.soup import cook

    soup = cook(given.runs, given.out, given.how)
    for note in soup.notes:
        print(f"note: {note}", file=sys.stderr)
    _table(soup)
    print(f"soup: {given.out}")
    return 0


def _table(soup: Any) -> None:
    from lightning_cl.report.console import a_console, a_table, cell, titled
    from lightning_cl.report.text import DASH

    def number(value: float | None) -> str:
        return DASH if value is None else f"{value:.4f}"

    table = a_table()
    columns = ["ingredient", "validation", "test"] + (["soup with it"] if soup.how == "greedy" else []) + ["used"]
    for name in columns:
        table.add_column(name, justify="left" if name == "ingredient" else "right", overflow="fold")
    for each in soup.ingredients:
        tried = [number(each.tried)] if soup.how == "greedy" else []
        row = [each.name, number(each.validation), number(each.test), *tried]
        table.add_row(*map(cell, [*row, "yes" if each.used else "no"]))
    used = sum(each.used for each in soup.ingredients)
    row = [f"soup of {used}", number(soup.validation), number(soup.test), *([""] if soup.how == "greedy" else []), ""]
    table.add_section()
    table.add_row(*map(cell, row), style="bold")
    a_console(None).print(titled(f"{soup.how} soup: {soup.metric}, mean over tasks", table))
