"""Loggers of a run that is many fits, perhaps in many processes: one folder, one count of steps."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers


class CSVLogger(loggers.CSVLogger):
    """Lightning's, but it goes on in a ``metrics.csv`` that is there instead of deleting it.

    Rows from the first newly logged step on are dropped: a resumed run repeats them, a run started anew has no use for
    any.
    """

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log values at a step."""
        rows = self._rows_before(step) if self._experiment is None else []
        super().log_metrics(metrics, step)
        if rows:
            self.experiment.metrics[:0] = rows

    def _rows_before(self, step: int | None) -> list[dict[str, Any]]:
        path = Path(self.log_dir) / "metrics.csv"
        if not path.is_file():
            return []
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        path.unlink()
        return [row for row in rows if row["step"].isdigit() and int(row["step"]) < (step or 0)]


def count_on(logger: Any, steps: int) -> Any:
    """Let a logger add ``steps`` to every step: each task has a new Trainer, whose ``global_step`` starts at 0."""
    inner = getattr(logger.log_metrics, "inner", logger.log_metrics)

    def log_metrics(metrics: dict[str, Any], step: int | None = None) -> None:
        inner(metrics, step if step is None else step + steps)

    log_metrics.inner = inner  # type: ignore[attr-defined]
    logger.log_metrics = log_metrics
    return logger
