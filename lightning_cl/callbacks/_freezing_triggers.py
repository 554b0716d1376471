"""When the next phase of a freezing schedule is due."""

import logging
import math
from typing import Any

from lightning_cl import _compat_resume as resuming
from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.callbacks._plateau_metric import EpochMetric, unknown
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

    def __init__(self, metric: EpochMetric | None = None) -> None:
        self.best: float | None = None
        self.waited = 0
        self.reached = False
        self.seen_at = -1  # the step of the last look, so that a resumed epoch's end does not count twice
        self.metric = metric or EpochMetric()

    def resume(self, phase: Phase | None, coming: Phase | None, trainer: Any) -> None:
        """In ``on_train_start``: take the look that Lightning leaves out if it goes on behind an epoch's last batch.

        Raises:
            InputError: If the checkpoint does not hold what was logged for the ``coming`` plateau.
        """
        if coming is None:
            return
        self.metric.resume(trainer, coming.value["monitor"])
        if phase is not coming or resuming.validate_first(trainer) or not resuming.saved_behind_last_batch(trainer):
            return  # all that follows is done as usual
        if self._at_epoch_end(trainer) and self.metric.value(trainer, coming.value["monitor"]) is None:
            raise unknown(coming.value["monitor"])
        self.epoch_ends(phase, trainer)

    def batch_ends(self, coming: Phase | None, trainer: Any) -> None:
        """In ``on_train_batch_end``: follow the metric of the next plateau, for a checkpoint inside the epoch."""
        if coming is not None:
            self.metric.batch_ends(trainer, coming.value["monitor"])

    def epoch_ends(self, phase: Phase | None, trainer: Any) -> None:
        """In ``on_train_epoch_end``."""
        self.look(phase, trainer, after_validation=False)
        self.metric.epoch_is_over()

    def look(self, phase: Phase | None, trainer: Any, *, after_validation: bool) -> None:
        """Compare the metric with its best; called at both places, of which one counts."""
        if phase is None or phase.trigger != "plateau" or trainer.sanity_checking:
            return
        if after_validation:
            self.metric.validation_ends(trainer, phase.value["monitor"])
        if after_validation == self._at_epoch_end(trainer) or trainer.global_step == self.seen_at:
            return
        self.seen_at = trainer.global_step
        value, settings = self._metric(phase, trainer), phase.value
        sign = 1.0 if settings["mode"] == "min" else -1.0
        better = self.best is None or sign * value < sign * self.best - settings["min_delta"]
        self.best, self.waited = (value, 0) if better else (self.best, self.waited + 1)
        # ranks may see different values if the metric is logged without sync_dist
        self.reached = trainer.strategy.reduce_boolean_decision(self.waited >= settings["patience"], all=False)

    @staticmethod
    def _at_epoch_end(trainer: Any) -> bool:
        once_an_epoch = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
        return bool(once_an_epoch or not trainer.enable_validation)

    def _metric(self, phase: Phase, trainer: Any) -> float:
        metrics, monitor = trainer.callback_metrics, phase.value["monitor"]
        value = self.metric.value(trainer, monitor)
        if value is None:
            raise InputError(
                f"plateau of {monitor!r}, which is not logged",
                f"one of {sorted(metrics)}" if metrics else "a logged metric",
                "log it in validation_step, or in training_step with on_epoch=True",
            )
        return value

    def state(self) -> dict[str, Any]:
        """Primitives only."""
        looks = {"best": self.best, "waited": self.waited, "reached": self.reached, "seen_at": self.seen_at}
        return {**looks, "metric": self.metric.state()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on as saved."""
        self.best, self.waited = state["best"], state["waited"]
        self.reached, self.seen_at = state["reached"], state["seen_at"]
        self.metric.load(state.get("metric", []))
