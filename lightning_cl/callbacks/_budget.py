"""Ends a fit when its share of a compute budget is spent."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_cl.callbacks._flops import FlopCounter


class ComputeBudget(Callback):
    """Ends a fit, normally, before the optimizer step that would go over its share.

    A step is taken to cost what the dearest one of the fit did so far; so only a step that is dearer than all before it
    (the first; the first with replay in it) can go over, and by no more than itself. Learning-rate schedules are not
    told: a fit that is cut ends wherever its schedule is. Validation follows, as at any early stop. Belongs behind the
    counter. State: the dearest step.

    Args:
        counter: Counts the fit's FLOPs.
        share: FLOPs that the fit may spend, over all processes.
    """

    def __init__(self, counter: FlopCounter, share: float) -> None:
        self.counter, self.share = counter, share
        self.budget_spent = False
        self._dearest = self._mark = self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Steps are counted from here; a fit goes on behind a step that was taken."""
        self._mark, self._step = self.counter.total, trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask for the end if another step is not affordable; batches that are still accumulated belong to a step."""
        if trainer.global_step == self._step:
            return
        total = self.counter.total
        self._dearest = max(self._dearest, total - self._mark)
        self._mark, self._step = total, trainer.global_step
        if (total + self._dearest) * trainer.world_size > self.share:
            self.budget_spent = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        """The dearest step so far."""
        return {"version": 1, "dearest": self._dearest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self._dearest = state_dict["dearest"]
