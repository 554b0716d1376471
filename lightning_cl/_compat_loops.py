"""What an exact resume needs from Lightning's fit loop beyond its public interface; each function has a test."""

from typing import Any


def validation_follows(trainer: Any) -> bool:
    """True in ``on_train_batch_end`` when the validation loop runs next."""
    loop = trainer.fit_loop
    return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def ending(trainer: Any) -> bool:
    """True when no training step will follow: ``max_steps`` is reached, or a stop request will be granted."""
    if trainer.max_steps not in (None, -1) and trainer.global_step >= trainer.max_steps:
        return True
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def as_between_epochs(checkpoint: dict[str, Any]) -> None:
    """Change a checkpoint that was taken in ``on_train_epoch_start``: the coming epoch has not been announced yet."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_progress"]
    for tracker in (progress["total"], progress["current"]):
        tracker["ready"] = tracker["completed"]


def start_epoch_anew(trainer: Any) -> None:
    """In ``on_train_start``: let a fit resumed between two epochs begin the next one as if it had never stopped."""
    trainer.fit_loop.epoch_loop.restarting = False


def end_epoch_as_usual(trainer: Any) -> None:
    """In ``on_train_epoch_end``: step ``ReduceLROnPlateau`` in the epoch of a resume too; its metrics are all there."""
    trainer.fit_loop._restarting = False
