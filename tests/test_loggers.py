"""Loggers write one series for the whole run, though every task has a new Trainer."""

import csv
import json
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from lightning_cl.loggers import CSVLogger, count_on
from tests.command_line import QUICK, Call, call

__all__ = ["call"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_and_tensorboard_steps_count_on_over_tasks(call: Call, tmp_path: Path):
    arguments = ["method=naive", *QUICK, "+trainer.log_every_n_steps=1", "hydra.run.dir=run"]
    outcome = call(*arguments, "logger=[csv,tensorboard]")
    assert (outcome.code, outcome.err) == (0, "")
    logged = rows(tmp_path / "run" / "csv" / "metrics.csv")
    steps = [int(row["step"]) for row in logged if row["train_loss"]]
    per_task = [task["steps"] for task in json.loads((tmp_path / "run" / "results.json").read_text())["per_task"]]
    assert steps == list(range(sum(per_task)))
    assert len(per_task) == 2

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}
    assert sorted(losses) == steps
    for row in logged:
        assert abs(losses[int(row["step"])] - float(row["train_loss"])) < 1e-5

    # the first task alone, then the second in another process: the same file
    for limit in (1, 2):
        again = call(*arguments, "logger=csv", f"limit_tasks={limit}", "hydra.run.dir=parts")
        assert (again.code, again.err) == (0, "")
        parts = rows(tmp_path / "parts" / "csv" / "metrics.csv")
        assert parts == logged[: sum(per_task[:limit])]
    again = call(*arguments, "logger=csv", "limit_tasks=1", "hydra.run.dir=parts", "resume=never")
    assert again.code == 0
    assert rows(tmp_path / "parts" / "csv" / "metrics.csv") == logged[: per_task[0]]


def test_csv_goes_on_behind_the_rows_of_the_process_before(tmp_path: Path):
    def log(steps: range, value: float) -> None:
        logger = CSVLogger(str(tmp_path), name="csv", version="")
        for step in steps:
            logger.log_metrics({"loss": value}, step)
            logger.save()

    log(range(5), 1.0)
    log(range(3, 7), 2.0)  # killed after step 4, resumed at step 3
    found = [(int(row["step"]), float(row["loss"])) for row in rows(tmp_path / "csv" / "metrics.csv")]
    assert found == [(0, 1.0), (1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0), (6, 2.0)]
    log(range(2), 3.0)  # started anew
    assert [int(row["step"]) for row in rows(tmp_path / "csv" / "metrics.csv")] == [0, 1]


def test_count_on_replaces_the_offset_of_the_task_before():
    class Recorder(Logger):
        name, version = "recorder", 0

        def __init__(self) -> None:
            super().__init__()
            self.steps: list[Any] = []

        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            self.steps.append(step)

        def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
            raise NotImplementedError

    logger = Recorder()
    for offset in (0, 10, 25):
        assert count_on(logger, offset) is logger
        logger.log_metrics({}, step=1)
    logger.log_metrics({})
    assert logger.steps == [1, 11, 26, None]
