"""The page of one run."""

from pathlib import Path
from typing import Any

from . import learning_rate
from .alpha_curves import CAPTION, alpha_curves
from .cards import cards
from .files import write_atomic
from .finding import read_run
from .floors import percent, trivial_run
from .html import render, save_figures
from .importance import importance_section
from .plots import run_figures
from .run import Matrix, Run
from .terminal import labelled
from .text import DASH, duration, flops, listed, number

_CAPTIONS = {
    "accuracy_matrix": "Row: after learning this task. Column: tested on this task. Empty: not evaluated.",
    "accuracy_over_tasks": "Thin: each task from the time it was learned. Bold: mean over the tasks seen so far.",
    "seconds_per_task": "Time of each stage. Evaluation covers all tasks seen so far.",
    "continual_evaluation": "Evaluated during training; vertical lines are changes of task.",
}


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write ``report.html``, one file with everything in it, and its figures as ``plots/*.png``.

    Args:
        run_dir: A run folder; its results.json is all that is read.
        output: Where to write; the run folder by default.

    Returns:
        The page's path.

    Raises:
        InputError: The results cannot be read or the report cannot be written.
    """
    run = read_run(Path(run_dir))
    folder = Path(run_dir) if output is None else Path(output)
    curves = alpha_curves(run)
    search = learning_rate.learning_rate_figure(run.results.get("tuned"))
    if search is not None:
        curves[learning_rate.NAME] = search
    captions = {**_CAPTIONS, **dict.fromkeys(curves, CAPTION), learning_rate.NAME: learning_rate.CAPTION}
    uris = save_figures({**run_figures(run), **curves}, folder / "plots")
    validation = run.validation_matrix
    matrices = [("Test", _texts(run, run.matrix))] + ([("Validation", _texts(run, validation))] if validation else [])
    page = render(
        "report.html.j2",
        title=f"{run.method} on {run.stream}",
        facts=_facts(run),
        status=run.status,
        notice=_notice(run),
        trivial=trivial_run(run),
        cards=cards(run),
        bounds=_bounds(run),
        metric=run.metric,
        percent=run.percent,
        figures=[(f"{name.replace('_', ' ').capitalize()}", uri, captions[name]) for name, uri in uris.items()],
        tasks=_tasks(run),
        matrices=matrices,
        task_names=run.task_names,
        importances=_importances(run, folder / "plots"),
        config=_config(run.results.get("config")),
        config_hash=run.results.get("config_hash"),
        versions=dict(run.results.get("versions") or {}),
    )
    return write_atomic(folder / "report.html", page)


def _texts(run: Run, matrix: Matrix) -> list[list[str]]:
    return [[run.show(value) for value in row] for row in matrix]


def _facts(run: Run) -> list[str]:
    results, count = run.results, len(run.task_names)
    facts = [str(results["scenario"]).replace("_", "-")] if results.get("scenario") else []
    facts.append(f"{count} task{'s' if count != 1 else ''}")
    facts += [
        f"{key.replace('_', ' ')} {results[key]}"
        for key in ("seed", "class_order_seed")
        if results.get(key) is not None
    ]
    return facts


def _notice(run: Run) -> str:
    """What to know before the numbers are read; empty for a finished run."""
    if run.status == "finished":
        return ""
    failed = "This run diverged" if run.diverged else "This run failed"
    say = {"running": "This run is not finished", "failed": failed}.get(run.status, f"Status: {run.status}")
    line = f"{say}: {run.learned} of {len(run.task_names)} tasks learned and evaluated. The numbers are for these."
    return f"{line} {run.results['error']}" if run.results.get("error") else line


def _bounds(run: Run) -> list[dict[str, Any]]:
    """Method between its bounds; empty when no reference was trained."""
    if not run.references:
        return []
    members = {run.method: run} if run.method not in run.references else {}
    order = sorted((run.references | members).items(), key=lambda item: {"naive": 0, "joint": 2}.get(item[0], 1))
    return [
        {
            "name": labelled(name, run),
            "ours": member is run,
            "average": run.show(member.average_accuracy),
            "forgetting": run.show(member.forgetting),
            "compute": flops(member.flops) + _of_joint(member),
            "train": duration(member.seconds("train")),
        }
        for name, member in order
    ]


def _of_joint(run: Run) -> str:
    return "" if run.compute_share is None else f" ({percent(run.compute_share)} of joint's)"


def _tasks(run: Run) -> list[dict[str, Any]]:
    """The rows of the per-task table."""
    matrix, last, rows = run.matrix, run.learned - 1, []
    per_task, sizes = run.results.get("per_task") or [], run.results.get("n_test") or []
    stages = (run.results.get("compute") or {}).get("stages") or {}
    for j, name in enumerate(run.task_names):
        task = per_task[j] if j < len(per_task) and per_task[j] else {}
        seconds = task.get("seconds") or {}
        spent = [number(value) for value in (stages.get(str(j)) or {}).values()]
        known = [value for value in spent if value is not None]
        steps = number(task.get("steps"))
        rows.append(
            {
                "name": name,
                "classes": listed([str(c) for c in task.get("classes") or []]) or DASH,
                "n_test": f"{sizes[j]:,}" if j < len(sizes) and number(sizes[j]) is not None else DASH,
                "learned": run.show(matrix[j][j]),
                "final": run.show(matrix[last][j] if last >= 0 else None),
                "forgetting": run.show(run.task_forgetting(j)),
                "steps": f"{steps:,.0f}" if steps is not None else DASH,
                "seconds": [duration(number(seconds.get(phase))) for phase in ("train", "consolidate", "evaluate")],
                "flops": flops(sum(known) if known else None),
            }
        )
    return rows


def _importances(run: Run, plots: Path) -> list[dict[str, Any]]:
    """One section for each callback with a quadratic penalty; none for a run without."""
    found = run.results.get("importance")
    sections = list(found.items()) if isinstance(found, dict) else []
    return [
        importance_section(rows, name, plots, "importance" if len(sections) == 1 else f"importance_{i + 1}")
        for i, (name, rows) in enumerate(sections)
    ]


def _config(config: Any) -> str:
    """The config as YAML text; empty without one."""
    import yaml

    if not config:
        return ""
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100))
