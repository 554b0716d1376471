"""The table of a freezing schedule: what thaws when, with how many parameters and which learning rate."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from lightning_cl.callbacks._freezing_optimizer import learning_rates
from lightning_cl.callbacks._freezing_plan import Plan
from lightning_cl.report.console import a_console, a_table, cell, titled

log = logging.getLogger(__name__)
COLUMNS = ("phase", "thaws", "when", "tensors", "parameters", "learning rate")


def rows(plan: Plan, optimizers: list[Any]) -> list[tuple[str, ...]]:
    """One row for each phase, and one for what is never thawed."""
    found: list[tuple[str, ...]] = [
        (str(i), part.phase.what, part.phase.when, *_size(part.parameters), _rates(optimizers, part.parameters))
        for i, part in enumerate(plan.parts)
    ]
    return [*found, ("-", "nothing else", "never", *_size(plan.never), "-")] if plan.never else found


def show(name: str, table: list[tuple[str, ...]], *, printed: bool) -> None:
    """Log the rows, and print them as a table."""
    for row in table:
        log.info("%s: %s", name, ", ".join(f"{c} {v}" for c, v in zip(COLUMNS, row, strict=True)))
    if not printed:
        return
    drawn = a_table()
    for i, column in enumerate(COLUMNS):
        drawn.add_column(column, justify="right" if i in (3, 4, 5) else "left")
    for row in table:
        drawn.add_row(*map(cell, row))
    a_console(None).print(titled(name, drawn))


def _size(parameters: Mapping[str, nn.Parameter]) -> tuple[str, str]:
    return str(len(parameters)), f"{sum(p.numel() for p in parameters.values()):,}"


def _rates(optimizers: list[Any], parameters: dict[str, nn.Parameter]) -> str:
    found = learning_rates(optimizers, parameters)
    if not found:
        return "no optimizer"
    return f"{found[0]:g}" if len(found) == 1 else f"{min(found):g} to {max(found):g}"
