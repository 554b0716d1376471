"""Loggers of a run that is many fits, perhaps in many processes: one folder, one count of steps."""

import csv
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.logger import rank_zero_experiment


class CSVLogger(loggers.CSVLogger):
    """Lightning's, but it goes on in a ``metrics.csv`` that is there instead of deleting it.

    Rows from the first newly logged step on are dropped: a resumed run repeats them, a run started anew has no use for
    any.
    """

    _goes_on = False

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Lightning's writer; what an earlier process wrote is put back."""
        path = self._path
        if self._experiment is not None or not path.is_file():
            return super().experiment
        before = path.read_bytes()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*logs directory .* exists and is not empty.*")
            writer = super().experiment
        path.write_bytes(before)
        self._goes_on = True
        return writer

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Log values at a step."""
        writer = self.experiment
        if self._goes_on:
            with self._path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            writer.metrics = [row for row in rows if row["step"].isdigit() and int(row["step"]) < (step or 0)]
            self._path.unlink()
            self._goes_on = False
        super().log_metrics(metrics, step)

    @property
    def _path(self) -> Path:
        return Path(self.log_dir) / "metrics.csv"


def count_on(logger: Any, steps: int) -> Any:
    """Let a logger add ``steps`` to every step: each task has a new Trainer, whose ``global_step`` starts at 0."""
    inner = getattr(logger.log_metrics, "inner", logger.log_metrics)

    def log_metrics(metrics: dict[str, Any], step: int | None = None) -> None:
        inner(metrics, step if step is None else step + steps)

    log_metrics.inner = inner  # type: ignore[attr-defined]
    logger.log_metrics = log_metrics
    return logger
