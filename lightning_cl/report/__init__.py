"""Results files made readable: terminal tables, plots, one HTML page per run and one per comparison.

Nothing heavy is imported until a name is used; matplotlib and jinja2 only when a page is written.
"""

from lightning_cl._lazy import lazy

_WHERE = {
    "ComparisonRow": "row",
    "Run": "run",
    "Statistic": "statistic",
    "comparison_table": "comparison",
    "gather": "finding",
    "importance_table": "importance",
    "main": "command",
    "matrix_table": "terminal",
    "print_comparison": "comparison_terminal",
    "sweep_summary": "sweep",
    "task_table": "terminal",
    "write_comparison": "comparison_page",
    "write_importance_page": "importance",
    "write_report": "page",
}
__all__ = sorted(_WHERE)
__getattr__ = lazy(__name__, _WHERE)


def __dir__() -> list[str]:
    return __all__
