"""Lightning's moving average of the weights, over a sequence of fits."""

import copy
import logging
from typing import Any

import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import AveragedModel

from lightning_cl import _compat
from lightning_cl.errors import InputError

log = logging.getLogger(__name__)


class EMA(EMAWeightAveraging):
    r"""Trains as usual, and validates, keeps and evaluates an exponential moving average of the weights.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta

    This is Lightning's :class:`~lightning.pytorch.callbacks.EMAWeightAveraging` with what a sequence of fits needs. The
    average starts anew in each fit, after the head has got its rows and on the module's device (Lightning's own is made
    before: it fails at the first step of a head that grows). ``select="best"`` keeps the averaged weights that were
    validated. At the end of the fit the module has the averaged weights: other methods consolidate them, they are
    evaluated, and the next task starts from them. Penalties act on the weights that are trained. Put it before methods
    that consolidate at the end of a fit of your own.

    State: the averaged weights and buffers, in the checkpoint's ``state_dict``; nothing between fits.

    Args:
        decay: d, from 0 to 1 (not 1). The average spans about 1 / (1 - d) updates; in a fit of fewer it stays near the
            weights after the first one, and a warning says so.
        update_every_n_steps: Optimizer steps between two updates.
        update_starting_at_step, update_starting_at_epoch: Of each fit; None from the first step on.
        use_buffers: Whether running statistics are averaged too.
        device: Where the average is; the module's by default.

    Raises:
        InputError: For other values, or a strategy that shards parameters.
    """

    def __init__(
        self,
        decay: float = 0.999,
        *,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
        use_buffers: bool = True,
        device: str | None = None,
    ) -> None:
        if isinstance(decay, bool) or not isinstance(decay, int | float) or not 0 <= decay < 1:
            raise InputError(f"decay={decay!r}", "a number from 0 to 1, not 1", "decay=0.999")
        if not isinstance(update_every_n_steps, int) or update_every_n_steps < 1:
            raise InputError(f"update_every_n_steps={update_every_n_steps!r}", "an integer >= 1", "leave it out for 1")
        super().__init__(
            device=device,
            use_buffers=use_buffers,
            decay=decay,
            update_every_n_steps=update_every_n_steps,
            update_starting_at_step=update_starting_at_step,
            update_starting_at_epoch=update_starting_at_epoch,
        )
        self.decay = float(decay)
        self._finished = False  # a checkpoint's training; then nothing follows its loading

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """A fit begins: no average yet."""
        if stage != "fit":
            return
        strategy = _compat.strategy_name(trainer)
        if strategy in _compat.SHARDED:
            raise InputError(f"strategy {strategy!r} with EMA", "whole parameters", "use strategy='auto' or 'ddp'")
        self._average_model = None
        self._finished = False
        self._latest_update_step, self._latest_update_epoch = 0, -1

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """The module has grown by now, and so has what the checkpoint's average is loaded into."""
        if trainer.state.fn == "fit":
            self._begin(pl_module)
            self._finished = "current_model_state" in checkpoint and _compat.training_was_finished(trainer, checkpoint)
        super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin at the present weights, or put what a checkpoint held on the module's device."""
        if self._average_model is None:
            self._begin(pl_module)
        assert self._average_model is not None
        self._average_model.to(self._device or pl_module.device)
        if self._finished and int(self._average_model.n_averaged):
            self._copy_average_to_current(pl_module)

    def _begin(self, module: Any) -> None:
        average = AveragedModel(torch.nn.Module(), use_buffers=self._use_buffers, **self._kwargs)
        average.module = weights_of(module)
        self._average_model = average

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the module the averaged weights; without an update it keeps those that were trained."""
        assert self._average_model is not None
        if not int(self._average_model.n_averaged):
            log.warning("EMA: no update in %d steps, the weights are not averaged; begin earlier", trainer.global_step)
            return
        updates = trainer.global_step // self.update_every_n_steps
        if self.decay**updates > 0.05 and self.update_starting_at_step is None:
            share = f"{self.decay**updates:.0%} of the average are the weights after its first update"
            log.warning("EMA: %s (decay=%g, %d updates); a smaller decay forgets them", share, self.decay, updates)
        super().on_train_end(trainer, pl_module)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """The average is in the module; it is not kept twice."""
        self._average_model = None

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """As at the end."""
        self._average_model = None


def weights_of(module: torch.nn.Module) -> torch.nn.Module:
    """A copy of a module that is good for its parameters and buffers: all else is shared with it, not copied.

    Callbacks hang loaders, memories and models on the modules that they patch.
    """
    own = ("_parameters", "_buffers", "_modules")
    shared = [value for part in module.modules() for name, value in vars(part).items() if name not in own]
    return copy.deepcopy(module, {id(value): value for value in shared}).requires_grad_(False)
