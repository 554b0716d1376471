"""What an exact resume needs from Lightning's fit loop beyond its public interface; each function has a test."""

import contextlib
import functools
from collections.abc import Iterator
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


def validation_loaders(trainer: Any) -> Any:
    """A fit's validation loaders, as they were given; they are made if the fit has not needed them yet."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if loop._combined_loader is None and trainer.enable_validation:
        loop.setup_data()
    return trainer.val_dataloaders


def validate_inside(trainer: Any, module: Any) -> dict[str, float] | None:
    """What another Trainer's ``validate`` logs for a module inside a fit of one process; None without validation data.

    Afterwards the module belongs to ``trainer`` again, on its device and in its modes.
    """
    loaders = validation_loaders(trainer)
    if not loaders:
        return None
    device, hook = trainer.strategy.root_device, module._current_fx_name
    modes = [(part, part.training) for part in module.modules()]
    other = type(trainer)(
        accelerator=device.type,
        devices=[device.index] if device.type == "cuda" else 1,
        precision=trainer.precision,
        limit_val_batches=trainer.limit_val_batches,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        other.validate(module, dataloaders=loaders, verbose=False)
    finally:
        module.trainer, module._current_fx_name = trainer, hook
        module.to(device)
        for part, training in modes:
            part.training = training
    return {name: float(value) for name, value in other.callback_metrics.items()}


@contextlib.contextmanager
def no_search_bar() -> Iterator[None]:
    """Inside the block, Lightning's search for a learning rate draws no progress bar, which it always does."""
    from lightning.pytorch.tuner import lr_finder as module

    lr_finder: Any = module
    before = lr_finder.tqdm
    lr_finder.tqdm = functools.partial(before, disable=True)
    try:
        yield
    finally:
        lr_finder.tqdm = before


def validated_weights(trainer: Any, module: Any) -> dict[str, Any]:
    """In ``on_validation_end``: the weights that were validated, a weight-averaging callback's if there is one.

    Such a callback has put the trained weights back by then.
    """
    for callback in trainer.callbacks:
        average = getattr(callback, "_average_model", None)
        if average is not None:
            return average.module.state_dict()
    return module.state_dict()


@contextlib.contextmanager
def averaged_weights(trainer: Any, module: Any) -> Iterator[None]:
    """Inside the block the module has the weights of a weight-averaging callback, if there is one in this fit."""
    averaging = [c for c in trainer.callbacks if getattr(c, "_average_model", None) is not None]
    for callback in averaging:
        callback._swap_models(module)
    try:
        yield
    finally:
        for callback in averaging:
            callback._swap_models(module)
