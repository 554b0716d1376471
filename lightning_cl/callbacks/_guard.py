"""Stops a run whose loss is not a number any more."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from lightning_cl.errors import InputError


class FiniteLoss(Callback):
    """Raises on a loss that is NaN or infinite; tasks that are finished stay on disk.

    On the CPU every step is checked; on an accelerator every ``log_every_n_steps``, because reading the loss waits for
    it.
    """

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Read the loss of the step."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, torch.Tensor):
            return
        if loss.device.type != "cpu" and batch_idx % max(1, trainer.log_every_n_steps):
            return
        bad = not bool(torch.isfinite(loss.detach()).all())
        # all processes stop together: one that waits for another would wait for ever
        if trainer.strategy.reduce_boolean_decision(bad, all=False):
            raise InputError(
                f"loss={float(loss.detach().mean())!r} at step {trainer.global_step}",
                "a finite loss",
                "lower the learning rate or the penalty's lambda_, clip gradients, or look for NaN in the data",
            )
