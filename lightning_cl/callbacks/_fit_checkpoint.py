"""The checkpoint inside a fit, from which a killed training goes on."""

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback, Checkpoint

from lightning_cl import _compat_loops as loops
from lightning_cl import signals
from lightning_cl._compat_sharded import repair_loading, writes_folders
from lightning_cl.errors import InputError
from lightning_cl.files import checksum, loadable, refuse_full_disk, write_text


class FitCheckpoint(Checkpoint):
    """Writes the whole fit to one file every n optimizer steps, atomically.

    It writes only where Lightning goes on exactly as it would have: after a batch; after the validation that follows a
    batch; and, when an epoch is over, before the next one starts, when its last hooks and its ``ReduceLROnPlateau`` are
    done too (:class:`BeforeEpoch` tells it). It does not write when the fit is about to end: what a killed run then
    repeats is no more than n steps either. It is a ``Checkpoint``, so that Lightning runs it after other callbacks.

    Not restored: means over an epoch of what a module logs in ``training_step``; after a kill they are of the rest.

    Args:
        path: The file; only the newest state is kept.
        every_n_steps: Optimizer steps between two writes, and so the most that a killed run repeats.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps
        self.before_epoch = BeforeEpoch(self)
        self._saved = self._last = 0
        self._stride = 1  # optimizer steps of one batch; manual optimization may take several
        self._waiting = False
        self.stop_for = 0  # a signal: the fit is left when it is saved
        self._saving = ""
        self._state: dict[str, Any] = {}
        self._loaded: dict[str, Any] = {}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a strategy that would write a folder in place of the file."""
        if writes_folders(trainer):
            raise InputError(
                "save_distributed_checkpoint=True in a sequence of tasks",
                "checkpoints of one file, from which any number of processes goes on",
                "set save_distributed_checkpoint=false",
            )
        repair_loading(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Count from the step at which this fit starts or goes on."""
        self._saved = self._last = trainer.global_step
        self._waiting = False
        loaded, self._loaded = self._loaded, {}
        if loaded:
            trainer.should_stop = loaded["should_stop"]
            # a plateau may be judged by a value of an epoch before
            trainer.callback_metrics.update(loaded["metrics"])
            if loaded["where"] == "between epochs":
                loops.start_epoch_anew(trainer)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save when it is due and nothing belongs to this batch any more."""
        self._stride = max(self._stride, trainer.global_step - self._last)
        stepped, self._last = trainer.global_step > self._last, trainer.global_step
        # at a batch that steps, so no gradients are waiting that a checkpoint does not hold
        if not (stepped and self._due(trainer)) or trainer.is_last_batch:
            return
        self._waiting = loops.validation_follows(trainer)
        if not self._waiting:
            self._save(trainer, "after a batch")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Save what waited for the validation."""
        if self._waiting:
            self._save(trainer, "after a batch")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The epoch ends as one that was not resumed."""
        loops.end_epoch_as_usual(trainer)

    def save_before_epoch(self, trainer: Any) -> None:
        """Save what waited for the end of an epoch."""
        if self._due(trainer):
            self._save(trainer, "between epochs")

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave out hyperparameters that ``weights_only=True`` would not read; a resumed module has its own."""
        if not self._saving:
            return
        name = getattr(pl_module, "CHECKPOINT_HYPER_PARAMS_KEY", "hyper_parameters")
        checkpoint[name] = loadable(checkpoint.get(name, {}))
        checkpoint.pop(getattr(pl_module, "CHECKPOINT_HYPER_PARAMS_TYPE", "hparams_type"), None)
        if self._saving == "between epochs":
            loops.as_between_epochs(checkpoint)

    def state_dict(self) -> dict[str, Any]:
        """Where in the loop the file was written, and what Lightning forgets."""
        return dict(self._state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until the training starts."""
        self._loaded = dict(state_dict)

    def _due(self, trainer: Any) -> bool:
        steps = trainer.global_step - self._saved
        return steps > 0 and (steps + self._stride > self.every_n_steps or self.stop_for > 0)

    def _save(self, trainer: Any, where: str) -> None:
        self._waiting = False
        if loops.ending(trainer):
            return
        metrics = {key: value.detach().cpu() for key, value in trainer.callback_metrics.items()}
        self._state = {
            "version": 1,
            "where": where,
            "should_stop": trainer.should_stop,
            "metrics": metrics,
            "processes": trainer.world_size,
        }
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        self._saving = where
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
        except (OSError, RuntimeError) as error:
            refuse_full_disk(self.path, error)
            raise
        finally:
            self._saving, self._state = "", {}
        if trainer.is_global_zero:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            self._note(checksum(temporary))
            os.replace(temporary, self.path)
        self._saved = trainer.global_step
        if self.stop_for:
            raise signals.StopRequested(self.stop_for)

    def _note(self, coming: str) -> None:
        """Write down the checksum of the file that is about to be renamed, and those that the present one may have."""
        notes = _notes(self.path)
        before = notes.read_text().split()[:2] if notes.is_file() else []
        write_text(notes, "\n".join([coming, *before]))


def damaged(checkpoint: Path) -> bool:
    """Whether a file that :class:`FitCheckpoint` wrote is not as it was written."""
    notes = _notes(checkpoint)
    try:
        return notes.is_file() and checksum(checkpoint) not in notes.read_text().split()
    except (OSError, ValueError):
        return True


def _notes(checkpoint: Path) -> Path:
    return checkpoint.with_suffix(".sum")


class BeforeEpoch(Callback):
    """Stands before all other callbacks, so that what they do at an epoch's start is not yet in the checkpoint.

    Args:
        checkpoint: Whom it tells.
    """

    def __init__(self, checkpoint: FitCheckpoint) -> None:
        self.checkpoint = checkpoint

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The epoch before is over in every respect."""
        self.checkpoint.save_before_epoch(trainer)
