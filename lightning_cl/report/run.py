"""One run: its folder and what its results.json says."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .text import number

Matrix = list[list[float | None]]


def _square(rows: Any, tasks: int) -> Matrix:
    matrix: Matrix = [[None] * tasks for _ in range(tasks)]
    for i, row in enumerate((rows or [])[:tasks]):
        for j, value in enumerate((row or [])[:tasks]):
            matrix[i][j] = number(value)
    return matrix


def _last(matrix: Matrix) -> int:
    return max((i for i, row in enumerate(matrix) if any(value is not None for value in row[: i + 1])), default=-1)


def mean(values: list[float | None]) -> float | None:
    """Mean of those that are there; None when none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def is_divergence(error: Any) -> bool:
    """Whether an error says that numbers were none any more, outputs saturated, or a step could not be stable.

    Example:
        >>> is_divergence("loss=nan at step 7; expected a finite loss"), is_divergence("No space left on device")
        (True, False)
    """
    return bool(re.search(r"\b(finite|diverges)\b|importance that is 0", str(error or "")))


@dataclass(frozen=True)
class Run:
    """A run's results, read leniently: what is missing, null or NaN is None.

    Args:
        results: The content of ``results.json``.
        folder: Where it was found.

    ``matrix[i][j]`` is the test metric on task j after learning task i (Lopez-Paz & Ranzato, 2017), a fraction, always
    T x T; ``learned`` is the number of rows reached so far.
    """

    results: dict[str, Any]
    folder: Path = field(default_factory=Path)

    @property
    def method(self) -> str:
        """The method's name; of several, joined by ``+``."""
        name = self.results.get("method")
        return "+".join(map(str, name)) if isinstance(name, list) else str(name)

    @property
    def stream(self) -> str:
        """The stream's name."""
        return str(self.results.get("stream"))

    @property
    def status(self) -> str:
        """``running``, ``finished`` or ``failed``."""
        return str(self.results.get("status", "unknown"))

    @property
    def diverged(self) -> bool:
        """Whether it failed because the training blew up, and not because of bad input or a full disk."""
        return self.status == "failed" and is_divergence(self.results.get("error"))

    @property
    def metric(self) -> str:
        """The metric's name."""
        return str((self.results.get("metric") or {}).get("name", "accuracy"))

    @property
    def higher_is_better(self) -> bool:
        """Whether a larger value of the metric is the better one."""
        return bool((self.results.get("metric") or {}).get("higher_is_better", True))

    @property
    def task_names(self) -> list[str]:
        """One name per task."""
        names = [str(name) for name in self.results.get("task_names") or []]
        return names + [f"task {i}" for i in range(len(names), len(self.results.get("accuracy_matrix") or []))]

    @property
    def matrix(self) -> Matrix:
        """Test metric, T x T."""
        return _square(self.results.get("accuracy_matrix"), len(self.task_names))

    @property
    def validation_matrix(self) -> Matrix | None:
        """Validation metric, T x T; None when nothing was evaluated on validation data."""
        matrix = _square(self.results.get("validation_accuracy_matrix"), len(self.task_names))
        return matrix if _last(matrix) >= 0 else None

    @property
    def learned(self) -> int:
        """How many tasks have been learned and evaluated."""
        return _last(self.matrix) + 1

    @property
    def average_curve(self) -> list[float | None]:
        """After each task, the mean over the tasks seen by then."""
        return [mean(row[: i + 1]) for i, row in enumerate(self.matrix)]

    @property
    def average_accuracy(self) -> float | None:
        """As written; before the last task, the mean over the tasks seen so far."""
        return self._written("average_accuracy", self.average_curve[self.learned - 1] if self.learned else None)

    @property
    def forgetting(self) -> float | None:
        """As written; before the last task, the mean of ``task_forgetting`` so far."""
        return self._written("forgetting", mean([self.task_forgetting(j) for j in range(self.learned - 1)]))

    @property
    def validation_average(self) -> float | None:
        """Mean of the last row of the validation matrix; None without one."""
        matrix = self.validation_matrix
        return None if matrix is None else mean(matrix[last := _last(matrix)][: last + 1])

    @property
    def chance(self) -> float | None:
        """Accuracy of one answer for all, as a mean over the tasks learned; None for other metrics."""
        tasks = (self.results.get("per_task") or [])[: self.learned]
        classes = [list(task.get("classes") or []) for task in tasks if task]
        if self.metric != "accuracy" or not classes or not all(classes):
            return None
        if self.results.get("scenario") == "task_incremental":
            return mean([1 / len(names) for names in classes])
        return 1 / len({name for names in classes for name in names})

    @property
    def at_chance(self) -> bool:
        """Whether it learned nothing that can be told from chance: at most two points above it."""
        average, chance = self.average_accuracy, self.chance
        return average is not None and chance is not None and average <= chance + 0.02

    def task_forgetting(self, j: int) -> float | None:
        """Best earlier value on task j minus the present one (Chaudhry et al., 2018); positive is worse."""
        last, matrix = self.learned - 1, self.matrix
        earlier = [value for row in matrix[:last] if (value := row[j]) is not None]
        if j >= last or not earlier or (now := matrix[last][j]) is None:
            return None
        return max(earlier) - now if self.higher_is_better else now - min(earlier)

    def value(self, key: str) -> float | None:
        """A number at the top level of the results."""
        return number(self.results.get(key))

    def seconds(self, phase: str) -> float | None:
        """Seconds of all tasks in ``train``, ``consolidate`` or ``evaluate``."""
        values = [number((task.get("seconds") or {}).get(phase)) for task in self.results.get("per_task") or []]
        return sum(value for value in values if value is not None) if any(v is not None for v in values) else None

    @property
    def flops(self) -> float | None:
        """Operations of all stages of all tasks, without evaluation."""
        return number((self.results.get("compute") or {}).get("total"))

    @property
    def joint_flops(self) -> float | None:
        """Operations of joint training with this configuration, by formula."""
        return number((self.results.get("compute") or {}).get("joint"))

    @property
    def compute_share(self) -> float | None:
        """Operations as a share of joint's."""
        return self.flops / self.joint_flops if self.flops is not None and self.joint_flops else None

    @property
    def budget(self) -> float | None:
        """The share of joint's compute to which training was limited; None without a limit."""
        return number((self.results.get("compute") or {}).get("budget"))

    @property
    def references(self) -> dict[str, "Run"]:
        """Bounds that were trained with this run (naive, joint), by method name."""
        found = self.results.get("reference_methods") or {}
        return {str(name): Run(results, self.folder) for name, results in found.items() if isinstance(results, dict)}

    def show(self, value: float | None, digits: int = 2) -> str:
        """A value of the metric as text: in % if higher is better (a fraction), else as it is (a loss, an error)."""
        from .text import decimal

        if value is None or self.higher_is_better:
            return decimal(None if value is None else 100 * value, digits)
        return decimal(value, digits + 2)

    @property
    def unit(self) -> str:
        """The unit of what ``show`` returns, with its space: ``" %"`` or nothing."""
        return " %" if self.higher_is_better else ""

    @property
    def percent(self) -> str:
        """``" (%)"`` or nothing: the unit for headings."""
        return " (%)" if self.higher_is_better else ""

    def _written(self, key: str, otherwise: float | None) -> float | None:
        written = self.value(key)
        return otherwise if written is None else written
