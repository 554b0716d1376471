"""Phases of a freezing schedule that cannot come, because the fit ends before."""

import logging
import math
from typing import Any

from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_cl.callbacks._freezing_phases import Phase

log = logging.getLogger(__name__)
Row = tuple[str, ...]


def cannot_come(phases: list[Phase], thawed: int, trainer: Any) -> dict[int, str]:
    """Why, by place, in ``on_train_start``, where the training's length is known; nothing of what may still come.

    Args:
        phases: All phases.
        thawed: How many have come already, in a fit that is resumed.
        trainer: The Trainer.
    """
    found: dict[int, str] = {}
    for i, phase in enumerate(phases[thawed:], thawed):
        if found:
            found[i] = f"waits for phase {min(found)}"
        elif length := _too_short(phase, trainer):
            found[i] = length
    return found


def say(name: str, phases: list[Phase], never: dict[int, str]) -> None:
    """One warning with all of them, if there are any."""
    if not never:
        return
    what = ", ".join(f"phase {i} ({phases[i].what}, {phases[i].when})" for i in never)
    hint = "HINT: train longer, or thaw earlier: a 'fraction' fits every length"
    log.warning("%s: %s cannot come in a fit of %s; %s", name, what, never[min(never)], hint)


def marked(table: list[Row], never: dict[int, str]) -> list[Row]:
    """The rows of the schedule's table; those of phases that cannot come say so."""
    return [(*row[:2], f"{row[2]} (never: {never[i]})", *row[3:]) if i in never else row for i, row in enumerate(table)]


def _too_short(phase: Phase, trainer: Any) -> str:
    """The fit's length if the phase cannot come in it."""
    epochs, steps = trainer.max_epochs or -1, _steps(trainer)
    if phase.trigger == "epoch" and 0 < epochs <= phase.value:
        return _plural(epochs, "epoch")
    if not steps or phase.trigger not in ("epoch", "step", "fraction"):
        return ""
    batches = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
    # phases thaw before a step, the last time before the last
    last = {"epoch": (steps - 1) // batches, "step": steps - 1, "fraction": (steps - 1) / steps}[phase.trigger]
    return _plural(steps, "step") if phase.value > last else ""


def _steps(trainer: Any) -> int:
    """Optimizer steps of the whole training; 0 if they cannot be told before."""
    varying = trainer.reload_dataloaders_every_n_epochs or any(
        isinstance(c, GradientAccumulationScheduler) and len(c.scheduling) > 1 for c in trainer.callbacks
    )
    unknown = varying or not trainer.num_training_batches < math.inf
    if unknown or not trainer.lightning_module.automatic_optimization:
        return 0
    total = trainer.estimated_stepping_batches
    return int(total) if 0 < total < math.inf else 0


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'s' if n > 1 else ''}"
