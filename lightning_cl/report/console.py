"""What the terminal tables share."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

# rich takes 80 for a log file, which has no width
_LOG_WIDTH = 200


def a_console(console: "Console | None") -> "Console":
    """The given console, or standard output; in a file or a pipe wide enough for every table."""
    from rich.console import Console

    if console is not None:
        return console
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=max(_LOG_WIDTH, made.width))


def a_table() -> "Table":
    """An empty table in our style."""
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))


def titled(title: str, table: "Table") -> "Group":
    """A table under its title, which unlike rich's own may be wider than the table."""
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title, style="bold"), table)


def cell(text: Any) -> Any:
    """Text that is printed as it is: names may hold brackets, which rich would read as markup."""
    from rich.text import Text

    return Text(str(text))


def middle_out(count: int, room: int) -> list[int | None]:
    """Indices of ``count`` things of which ``room`` can be shown; None stands for the ones left out in the middle.

    Example:
        >>> middle_out(4, 4), middle_out(9, 5)
        ([0, 1, 2, 3], [0, 1, None, 7, 8])
    """
    if count <= room:
        return list(range(count))
    half = max((room - 1) // 2, 1)
    return [*range(half), None, *range(count - half, count)]
