"""The figures at the top of a run's page."""

from typing import Any

from .floors import percent
from .run import Run
from .text import duration, flops, number, size


def cards(run: Run) -> list[dict[str, str]]:
    """``{label, value, note}`` for every figure that this run has; the two that matter most always."""
    results, unit = run.results, run.unit
    bounds = [f"{name} {run.show(other.average_accuracy)}" for name, other in run.references.items()]
    beside = " · ".join(bounds) or "mean over the tasks seen"
    found = [
        _card(f"Average {run.metric}", run.show(run.average_accuracy), unit, beside),
        _card("Forgetting", run.show(run.forgetting), unit, "best before, minus final"),
    ]
    for key, label, note in (
        ("learning_accuracy", f"Learning {run.metric}", "each task just after learning it"),
        ("average_incremental_accuracy", f"Average incremental {run.metric}", "mean over the stream"),
        ("backward_transfer", "Backward transfer", "final, minus just learned"),
        ("forward_transfer", "Forward transfer", "before learning, minus random"),
    ):
        if (value := run.value(key)) is not None:
            found.append(_card(label, run.show(value), unit, note))
    if (seconds := run.seconds("train")) is not None:
        parts = [f"{phase} {duration(run.seconds(phase))}" for phase in ("consolidate", "evaluate")]
        found.append(_card("Training time", duration(seconds), "", " · ".join(parts)))
    if run.flops is not None:
        evaluation = number((results.get("compute") or {}).get("evaluation"))
        found.append(_card("Compute", flops(run.flops), "", f"evaluation {flops(evaluation)}"))
    if run.compute_share is not None:
        limit = "no budget" if run.budget is None else f"budget {percent(run.budget)}"
        found.append(_card("Share of joint compute", percent(run.compute_share), "", limit))
    if (state := _total(results.get("method_state_bytes"))) is not None:
        parts = [f"{name} {size(number(part))}" for name, part in _parts(results["method_state_bytes"])]
        found.append(_card("Method state", size(state), "", " · ".join(parts) or "nothing kept"))
    if (kept := _total(results.get("bytes_kept"))) is not None:
        found.append(_card("Kept between tasks", size(kept), "", "needed to go on"))
    if (peak := run.value("peak_rss_bytes")) is not None:
        found.append(_card("Peak memory", size(peak), "", "resident set of the process"))
    if (count := run.value("trainable_parameters")) is not None:
        found.append(_card("Trainable parameters", f"{count:,.0f}", "", ""))
    return found


def _card(label: str, value: str, unit: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value + (unit if value != "-" else ""), "note": note}


def _parts(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _total(value: Any) -> float | None:
    if not isinstance(value, dict):
        return number(value)
    return sum(part for _, raw in value.items() if (part := number(raw)) is not None)
