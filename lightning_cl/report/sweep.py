"""The summary at the end of a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .console import a_console, a_table, cell, titled
from .text import decimal, duration, number

if TYPE_CHECKING:
    from rich.console import Console


def sweep_summary(
    jobs: Sequence[dict[str, Any]], console: "Console | None" = None, higher_is_better: bool = True
) -> None:
    """Print one row per job, the best first, failed ones last, each of these named with its error.

    Args:
        jobs: ``{name, status, average_accuracy, forgetting, seconds, error, folder}``, the status one of ``finished``,
            ``pruned``, ``diverged`` and ``failed``, metrics as fractions; all but name and status may be missing.
        console: Where to print; standard output by default.
        higher_is_better: The direction of the metric; fractions are shown in % only if it is.
    """
    console = a_console(console)
    factor, digits, unit = (100.0, 2, " (%)") if higher_is_better else (1.0, 4, "")

    def place(job: dict[str, Any]) -> tuple[bool, bool, float]:
        value = number(job.get("average_accuracy"))
        return (
            job.get("status") != "finished",
            value is None,
            0.0 if value is None else (-value if higher_is_better else value),
        )

    def show(job: dict[str, Any], key: str) -> str:
        value = number(job.get(key))
        return decimal(None if value is None else factor * value, digits)

    pruned = [job for job in jobs if job.get("status") == "pruned"]
    failed = [job for job in jobs if job.get("status") not in ("finished", "pruned")]
    table = a_table()
    for name in ("#", "job", "status", f"average accuracy{unit}", f"forgetting{unit}", "time", "folder"):
        text = name in ("job", "status", "folder")
        table.add_column(
            name, justify="left" if text else "right", overflow="fold", no_wrap=name in ("#", "status", "time")
        )
    for i, job in enumerate(sorted(jobs, key=place)):
        bad = job.get("status") != "finished"
        line = ["-" if bad else str(i + 1), job.get("name"), job.get("status"), show(job, "average_accuracy")]
        line += [show(job, "forgetting"), duration(number(job.get("seconds"))), job.get("folder") or "-"]
        table.add_row(*map(cell, line), style=("dim" if job in pruned else "red") if bad else None)
    done = f"{len(jobs) - len(failed) - len(pruned)} of {len(jobs)} jobs finished"
    console.print(titled(f"Sweep: {done}{f', {len(pruned)} given up' if pruned else ''}", table))
    for job in failed:
        error = " ".join(str(job.get("error") or "no reason given").split())
        console.print(cell(f"{job.get('status')}: {job.get('name')}: {error}"), style="red", soft_wrap=True)
