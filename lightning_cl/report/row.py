"""One row of a comparison."""

from dataclasses import dataclass, field
from typing import Any

from .run import Run
from .statistic import Statistic


@dataclass
class ComparisonRow:
    """One method with one configuration on one stream, over its seeds.

    Args:
        stream: The stream's name, with the settings that tell it from others of that name.
        scenario: The stream's scenario.
        method: The method's name.
        settings: The configuration keys, shortened, in which this row differs from the method's other rows.
        runs: The finished runs; only these are counted.
        unfinished: Runs of the same configuration that are still running or have failed.
        rank: Place within the stream by mean average accuracy, from 1; None without a finished run.
        best_on_validation: True for the best of the method's configurations by mean validation average; None when
            there is only one, or when not all of them were validated. The test metric takes no part in it, and a
            configuration of which a run diverged cannot be best.
    """

    stream: str
    scenario: str
    method: str
    settings: dict[str, str]
    runs: list[Run]
    unfinished: list[Run] = field(default_factory=list)
    rank: int | None = None
    best_on_validation: bool | None = None

    @property
    def label(self) -> str:
        """Method and settings."""
        return f"{self.method} ({self.settings_text})" if self.settings else self.method

    @property
    def settings_text(self) -> str:
        """``key=value, key=value``; empty without settings."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items())

    @property
    def example(self) -> Run:
        """Any run of this row, for what all of them share (metric, tasks)."""
        return (self.runs or self.unfinished)[0]

    @property
    def diverged(self) -> list[Run]:
        """Runs that failed because the training blew up."""
        return [run for run in self.unfinished if run.diverged]

    @property
    def n(self) -> int:
        """How many finished runs."""
        return len(self.runs)

    @property
    def average_accuracy(self) -> Statistic:
        """Mean over tasks after the last one."""
        return Statistic.of(run.average_accuracy for run in self.runs)

    @property
    def forgetting(self) -> Statistic:
        """Loss since each task's best."""
        return Statistic.of(run.forgetting for run in self.runs)

    @property
    def learning_accuracy(self) -> Statistic:
        """Just after learning each task."""
        return Statistic.of(run.value("learning_accuracy") for run in self.runs)

    @property
    def average_incremental_accuracy(self) -> Statistic:
        """Mean over the stream of the average accuracy."""
        return Statistic.of(run.value("average_incremental_accuracy") for run in self.runs)

    @property
    def train_seconds(self) -> Statistic:
        """Seconds in training, without consolidation and evaluation."""
        return Statistic.of(run.seconds("train") for run in self.runs)

    @property
    def consolidate_seconds(self) -> Statistic:
        """Seconds in consolidation."""
        return Statistic.of(run.seconds("consolidate") for run in self.runs)

    @property
    def flops(self) -> Statistic:
        """Operations of all stages, without evaluation."""
        return Statistic.of(run.flops for run in self.runs)

    @property
    def compute_share(self) -> Statistic:
        """Operations as a share of joint's."""
        return Statistic.of(run.compute_share for run in self.runs)

    @property
    def validation_average(self) -> Statistic:
        """Mean over tasks on validation data after the last task."""
        return Statistic.of(run.validation_average for run in self.runs)

    @property
    def curve(self) -> list[Statistic]:
        """Average accuracy after each task, over seeds."""
        curves = [run.average_curve for run in self.runs]
        longest = max((len(curve) for curve in curves), default=0)
        return [Statistic.of(curve[i] for curve in curves if i < len(curve)) for i in range(longest)]

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers (fractions, seconds, operations), for comparison.json."""
        names = ["average_accuracy", "forgetting", "learning_accuracy", "average_incremental_accuracy"]
        names += ["train_seconds", "consolidate_seconds", "flops", "compute_share", "validation_average"]
        figures = {name: getattr(self, name) for name in names}
        return {
            "rank": self.rank,
            "method": self.method,
            "settings": self.settings,
            "n": self.n,
            "seeds": [run.results.get("seed") for run in self.runs],
            **{name: {"mean": figure.mean, "sd": figure.sd, "n": figure.n} for name, figure in figures.items()},
            "best_on_validation": self.best_on_validation,
            "runs": [str(run.folder) for run in self.runs],
            "unfinished": [
                {"folder": str(run.folder), "status": run.status, "diverged": run.diverged} for run in self.unfinished
            ],
        }
