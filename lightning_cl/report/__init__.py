"""Results files made readable: terminal tables, plots, one HTML page per run and one per comparison.

Nothing heavy is imported until a name is used; matplotlib and jinja2 only when a page is written.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "ComparisonRow": "row",
    "Run": "run",
    "Statistic": "statistic",
    "comparison_table": "comparison",
    "gather": "finding",
    "main": "command",
    "matrix_table": "terminal",
    "print_comparison": "comparison_terminal",
    "sweep_summary": "sweep",
    "task_table": "terminal",
    "write_comparison": "comparison_page",
    "write_report": "page",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
