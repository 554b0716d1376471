"""The checkpoint inside a fit, from which a killed training goes on."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Checkpoint


class FitCheckpoint(Checkpoint):
    """Writes the whole fit to one file every n optimizer steps, atomically.

    The file is written when a batch is done. After an epoch's last batch it waits for the validation that follows,
    because a resumed fit would otherwise skip it. It is a ``Checkpoint``, so that Lightning runs it after all other
    callbacks.

    Args:
        path: The file; only the newest state is kept.
        every_n_steps: Optimizer steps between two writes, and so the most that a killed run repeats.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self._saved = 0
        self._waiting = False

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count from the step at which this fit starts or goes on."""
        self._saved = trainer.global_step
        self._waiting = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due."""
        due = trainer.global_step - self._saved >= self.every_n_steps
        if not due:
            return
        validates = trainer.is_last_batch and trainer.enable_validation and trainer.num_val_batches
        if validates:
            self._waiting = True
        else:
            self._save(trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save what waited for the validation."""
        if self._waiting:
            self._save(trainer)

    def _save(self, trainer: Any) -> None:
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, self.path)
        self._saved, self._waiting = trainer.global_step, False
