"""What every comparison is held against: floors, the baseline of a budget, and streams that need no method."""

from collections.abc import Iterable, Sequence

from .row import ComparisonRow
from .run import Run

FLOORS = {
    "keep": "keeps the first task's model",
    "naive": "lower bound",
    "shrink_and_perturb": "all data, shrunk and perturbed weights",
    "joint": "upper bound",
}
BASELINE = "uniform"
TRIVIAL = 0.01  # of a metric that is a fraction


def role(row: ComparisonRow) -> str:
    """``floor``, ``baseline`` or nothing.

    Joint is a floor within a budget, and a bound without one.
    """
    if row.method == BASELINE:
        return "baseline"
    if row.method == "joint" and row.example.budget is None:
        return "bound"
    return "floor" if row.method in FLOORS else ""


def is_trivial(naive: float | None, joint: float | None, higher_is_better: bool = True) -> bool:
    """Whether naive is within 1 point of joint (or above it), in a metric that is a fraction.

    Example:
        >>> is_trivial(0.965, 0.97), is_trivial(0.2, 0.97), is_trivial(None, 0.97)
        (True, False, False)
    """
    return higher_is_better and naive is not None and joint is not None and joint - naive <= TRIVIAL + 1e-9


def trivial_text(run: Run, naive: float, joint: float) -> str:
    """What is said of such a stream."""
    shown = f"naive {run.show(naive)}, joint {run.show(joint)}{run.unit}"
    return f"trivial stream: naive is within 1 point of joint ({shown})"


def trivial_run(run: Run) -> str:
    """The line for a run with references, or nothing."""
    members = {run.method: run, **run.references}
    naive, joint = (members[n].average_accuracy if n in members else None for n in ("naive", "joint"))
    if naive is None or joint is None or not is_trivial(naive, joint, run.higher_is_better):
        return ""
    return trivial_text(run, naive, joint)


def floor_lines(rows: Sequence[ComparisonRow]) -> list[str]:
    """Of one stream: whether it is trivial, which floors are missing, and what is above uniform at each budget."""
    run, lines = rows[0].example, []
    naive, joint = (_best(rows, name) for name in ("naive", "joint"))
    if naive is not None and joint is not None and is_trivial(naive, joint, run.higher_is_better):
        lines.append(trivial_text(run, naive, joint))
    for budget in _budgets(rows):
        there = [row for row in rows if row.example.budget == budget and row.average_accuracy.n]
        missing = [name for name in FLOORS if name != "keep" and name not in {row.method for row in there}]
        missing += [] if any(row.method == "keep" for row in rows) else ["keep"]
        baseline = [row for row in there if row.method == BASELINE]
        said = []
        if baseline:
            best = max(baseline, key=lambda row: _sign(row) * (row.average_accuracy.mean or 0.0))
            mean = best.average_accuracy.mean or 0.0
            above = [
                f"{row.label} {run.show(row.average_accuracy.mean)}"
                for row in there
                if row.method != BASELINE and _sign(row) * ((row.average_accuracy.mean or 0.0) - mean) > 0
            ]
            said.append(f"uniform {run.show(mean)}{run.unit}; above it: {', '.join(above) or 'nothing'}")
        if missing:
            said.append(f"floors not run: {', '.join(missing)}")
        if said:
            where = "without a budget" if budget is None else f"at {percent(budget)} of joint's compute"
            lines.append(f"{where}: {'; '.join(said)}")
    return lines


def percent(share: float | None) -> str:
    """A share as text.

    Example:
        >>> percent(0.1), percent(1.5), percent(0.0312), percent(None)
        ('10 %', '150 %', '3.12 %', '-')
    """
    return "-" if share is None else f"{100 * share:.3g} %"


def _budgets(rows: Iterable[ComparisonRow]) -> list[float | None]:
    """Those of finished runs, the smallest first; none at all is the largest."""
    found = {row.example.budget for row in rows if row.n}
    return sorted(found, key=lambda budget: float("inf") if budget is None else budget)


def _best(rows: Sequence[ComparisonRow], method: str) -> float | None:
    """The best mean of a method that had all the compute it wanted."""
    means = [row.average_accuracy.mean for row in rows if row.method == method and row.example.budget is None]
    return max((mean for mean in means if mean is not None), default=None)


def _sign(row: ComparisonRow) -> int:
    return 1 if row.example.higher_is_better else -1
