"""Giving up jobs of a sweep that fall behind the others. Imports nothing heavy."""

import json
import math
import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError

RESULTS = "results.json"
SAME = ("stream", "scenario", "metric", "task_names")


@dataclass(frozen=True)
class Pruning:
    """After each task, compare a job's average over the tasks so far with what other jobs had after the same task.

    The median stopping rule of Golovin et al., "Google Vizier" (KDD 2017), with tasks for steps. A job asks nobody:
    it reads the ``results.json`` of the others, which any process on any machine writes after every task, and which is
    still there when a sweep that was killed goes on.

    Args:
        after: Tasks that a job learns before it may be given up; None gives up none.
        jobs: Other jobs that must have learnt as many tasks.
        quantile: Share of these; a job is given up if more are better: 0.5 is the median, 0.75 spares more.

    Raises:
        InputError: For values outside these.

    Example:
        >>> rule = Pruning(after=1, jobs=2)
        >>> rule.falls_behind(0.4, [0.5, 0.7]), rule.falls_behind(0.6, [0.5, 0.7]), rule.falls_behind(0.4, [0.5])
        (True, False, False)
    """

    after: int | None = None
    jobs: int = 4
    quantile: float = 0.5

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, value in (("after", self.after), ("jobs", self.jobs)):
            if not (name == "after" and value is None) and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"prune.{name}={value!r}", "an integer >= 1", "prune.after=null gives up no job")
            if value is not None and value < 1:
                raise InputError(f"prune.{name}={value!r}", "an integer >= 1", "prune.after=null gives up no job")
        number = isinstance(self.quantile, int | float) and not isinstance(self.quantile, bool)
        if not (number and 0 < self.quantile < 1):
            raise InputError(f"prune.quantile={self.quantile!r}", "a number inside (0, 1)", "set prune.quantile=0.5")

    def falls_behind(self, own: float, others: Sequence[float], higher_is_better: bool = True) -> bool:
        """Whether more than the quantile of the others' values at the same task are better than ``own``."""
        if len(others) < self.jobs:
            return False
        sign = 1 if higher_is_better else -1
        return sum(sign * other > sign * own for other in others) > self.quantile * len(others)


def pruner(rule: Pruning, sweep_dir: Path, own_dir: Path) -> Callable[[dict[str, Any]], str | None] | None:
    """What a run asks after each task: the results so far -> why it is given up, or None.

    Args:
        rule: The rule.
        sweep_dir: The folder in which the other jobs' run folders are.
        own_dir: The run's own.
    """
    if rule.after is None:
        return None
    after = rule.after

    def given_up(results: dict[str, Any]) -> str | None:
        averages = averages_by_task(results)
        learnt = len(averages)
        if learnt < after or math.isnan(averages[-1]):
            return None
        higher = bool(results["metric"]["higher_is_better"])
        others = [found[learnt - 1] for found in _others(results, sweep_dir, own_dir) if len(found) >= learnt]
        if not rule.falls_behind(averages[-1], others, higher):
            return None
        middle = statistics.median(others)
        return (
            f"after task {learnt} of {len(results['task_names'])} an average of {averages[-1]:.4f}, "
            f"{len(others)} other jobs had {middle:.4f} in the median"
        )

    return given_up


def averages_by_task(results: dict[str, Any]) -> list[float]:
    """The average over the tasks so far after each task learnt; of validation data where there are."""
    matrix = results.get("validation_accuracy_matrix") or results["accuracy_matrix"]
    averages = []
    for task, row in enumerate(matrix):
        known = [value for value in row[: task + 1] if value is not None]
        if len(known) <= task:
            break
        averages.append(statistics.fmean(known))
    return averages


def objective(results: dict[str, Any], sweep_dir: Path, own_dir: Path) -> float | None:
    """What a sweeper that searches is told of a job: the final average; None for a job that failed.

    On validation data where there are. A job that was given up counts as the worst so far, so that a search keeps away
    from it: its own average over few tasks is not to be compared with those over all.
    """
    averages = averages_by_task(results)
    if results.get("status") not in ("finished", "pruned") or not averages:
        return None
    if results["status"] == "finished":
        return averages[-1]
    finished = [found[-1] for found in _others(results, sweep_dir, own_dir, "finished") if found]
    worst = min if results["metric"]["higher_is_better"] else max
    return worst([averages[-1], *finished])


def _others(results: dict[str, Any], sweep_dir: Path, own_dir: Path, status: str | None = None) -> list[list[float]]:
    """The averages of every other run of the same stream in the sweep's folder."""
    found = []
    # Hydra gives the first as it was typed
    sweep_dir, own_dir = Path(os.path.abspath(sweep_dir)), Path(os.path.abspath(own_dir))
    for file in sorted(sweep_dir.rglob(RESULTS)):
        if file.parent == own_dir or own_dir in file.parents or "references" in file.relative_to(sweep_dir).parts:
            continue
        try:
            other = json.loads(file.read_text())
            same = all(other[key] == results[key] for key in SAME) and status in (None, other["status"])
            found += [averages_by_task(other)] if same else []
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # not ours, or just being removed
    return found
