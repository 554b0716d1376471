"""Leaves a fit when a signal has asked for it, as soon as it is saved."""

from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_cl import signals
from lightning_cl.callbacks._fit_checkpoint import FitCheckpoint

EVERY = 8  # batches between two questions to the other processes; each makes all of them wait for all


class StopOnSignal(Callback):
    """Lets the fit's checkpoint be written at the next step after a signal, and the fit be left there.

    Several processes decide together: a signal that has come to one of them stops all, after the same batch.

    Args:
        checkpoint: The fit's; without one the fit is left at once.
    """

    def __init__(self, checkpoint: FitCheckpoint | None) -> None:
        self.checkpoint = checkpoint

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Ask whether anybody was told to stop."""
        number = signals.received()
        if trainer.world_size > 1:
            if (batch_idx + 1) % EVERY and not trainer.is_last_batch:
                return
            number = signals.shared(number, trainer.strategy.root_device)
        if not number:
            return
        if self.checkpoint is None:
            raise signals.StopRequested(number)
        self.checkpoint.stop_for = number
