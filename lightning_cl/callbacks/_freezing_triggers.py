"""When the next phase of a freezing schedule is due."""

import logging
import math
from typing import Any

from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.errors import InputError

log = logging.getLogger(__name__)


def due(phase: Phase, trainer: Any, plateau: "Plateau", batch_idx: int = 0) -> bool:
    """Whether a phase is to be thawed now, before this batch of the epoch, between two optimizer steps."""
    if phase.trigger is None:
        return True
    if phase.trigger == "epoch":
        return bool(trainer.current_epoch >= phase.value)
    if phase.trigger == "step":
        return bool(trainer.global_step >= phase.value)
    if phase.trigger == "fraction":
        return _progress(trainer, batch_idx) >= phase.value
    return plateau.reached


def refuse_endless(phases: list[Phase], trainer: Any) -> None:
    """Refuse fractions of a training whose length is not known.

    Raises:
        InputError: If neither max_epochs nor max_steps is set.
    """
    if any(phase.trigger == "fraction" for phase in phases) and trainer.max_epochs == -1 and trainer.max_steps == -1:
        raise InputError("a phase by 'fraction' in a training without an end", "max_epochs or max_steps",
                         "set one of them, or thaw by 'epoch', 'step' or 'plateau'")  # fmt: skip


def _progress(trainer: Any, batch_idx: int) -> float:
    """Steps done of all steps; batches with manual optimization, whose steps per batch are not known."""
    total = trainer.estimated_stepping_batches
    if getattr(trainer.lightning_module, "automatic_optimization", True) and 0 < total < math.inf:
        return trainer.global_step / total
    by_steps = trainer.global_step / trainer.max_steps if trainer.max_steps > 0 else 0.0
    # an epoch of unknown length counts when it is over
    epochs = trainer.current_epoch + batch_idx / trainer.num_training_batches
    return max(by_steps, epochs / trainer.max_epochs if trainer.max_epochs > 0 else 0.0)


class Plateau:
    """How long a monitored metric has not improved since the last thaw; looked at as ``EarlyStopping`` does.

    That is at the end of a training epoch, or after a validation where validation does not run once an epoch.
    """

    def __init__(self) -> None:
        self.best: float | None = None
        self.waited = 0
        self.reached = False
        self.seen_at = -1  # the step of the last look, so that a resumed epoch's end does not count twice

    def look(self, phase: Phase | None, trainer: Any, *, after_validation: bool) -> None:
        """Compare the metric with its best; called at both places, of which one counts."""
        if phase is None or phase.trigger != "plateau" or trainer.sanity_checking:
            return
        once_an_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
        if after_validation == (once_an_epoch or not trainer.enable_validation) or trainer.global_step == self.seen_at:
            return
        self.seen_at = trainer.global_step
        value, settings = float(self._metric(phase, trainer)), phase.value
        sign = 1.0 if settings["mode"] == "min" else -1.0
        better = self.best is None or sign * value < sign * self.best - settings["min_delta"]
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        # ranks may see different values if the metric is logged without sync_dist
        self.reached = trainer.strategy.reduce_boolean_decision(self.waited >= settings["patience"], all=False)

    def _metric(self, phase: Phase, trainer: Any) -> Any:
        metrics, monitor = trainer.callback_metrics, phase.value["monitor"]
        if monitor not in metrics:
            raise InputError(
                f"plateau of {monitor!r}, which is not logged",
                f"one of {sorted(metrics)}" if metrics else "a logged metric",
                "log it in validation_step, or in training_step with on_epoch=True",
            )
        return metrics[monitor]

    def state(self) -> dict[str, Any]:
        """Primitives only."""
        return {"best": self.best, "waited": self.waited, "reached": self.reached, "seen_at": self.seen_at}

    def load(self, state: dict[str, Any]) -> None:
        """Go on as saved."""
        self.best, self.waited = state["best"], state["waited"]
        self.reached, self.seen_at = state["reached"], state["seen_at"]
