"""A learning rate and a batch size found by Lightning's ``Tuner``, once, before the first task."""

import contextlib
import copy
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from lightning_cl import _compat, _compat_loops
from lightning_cl._compat_fsdp2 import whole
from lightning_cl.errors import InputError
from lightning_cl.files import loadable
from lightning_cl.finetuning.learning_rate import set_learning_rate
from lightning_cl.functional.learning_rate import steepest_learning_rate
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.sequence.processes import on_first
from lightning_cl.sequence.stages import task_data
from lightning_cl.sequence.state import SequenceState

log = logging.getLogger(__name__)


def search(state: SequenceState) -> None:
    """Find what ``settings.tune`` asks for, and keep it in ``progress["tuned"]``; nothing if it asks for nothing.

    The batch size is searched first, the learning rate at that batch size: on a copy of the module, with random numbers
    of its own, on the training data of the first fit, without what methods do in a fit (a schedule that freezes in
    ``setup`` holds). So a run with the values that were found, given by hand, is the same to the bit.

    Raises:
        InputError: If nothing is found, or several processes search for a batch size.
    """
    options = state.settings.tune or {}
    mode, wants_lr = options.get("scale_batch_size"), options.get("lr_find", False)
    if not (mode or wants_lr):
        return
    found: dict[str, Any] = {}
    state.progress["tuned"] = found
    if wants_lr:  # now rather than after the search
        set_learning_rate(copy.copy(state.module), 1.0)
    with _compat.seeded(derive_seed(state.settings.seed, "tune")):
        if mode:
            found["batch_size"] = _batch_size(state, mode, options.get("batch_size") or {})
        if wants_lr:
            found.update(_learning_rate(state, options.get("lr") or {}))
    log.info("tuned: %s", ", ".join(f"{key}={found[key]}" for key in ("batch_size", "lr") if key in found))
    run_dir = state.settings.run_dir
    if wants_lr and run_dir is not None:
        from lightning_cl.report.learning_rate import save_learning_rate

        on_first(lambda: save_learning_rate(found, run_dir / "plots"))


def apply(state: SequenceState) -> None:
    """Use what was found; the batch size is read from the progress."""
    lr = state.progress.get("tuned", {}).get("lr")
    for module in (state.module, state.initial_module) if lr is not None else ():
        if module is not None:
            set_learning_rate(module, lr)


def _batch_size(state: SequenceState, mode: str, options: dict[str, Any]) -> int:
    with _tuner(state) as (tuner, module, datamodule):
        if tuner._trainer.world_size > 1:
            raise InputError(
                f"tune.scale_batch_size={mode!r} with {tuner._trainer.world_size} processes",
                "one process",
                "search with trainer.devices=1 first, then set batch_size",
            )
        return int(tuner.scale_batch_size(module, datamodule=datamodule, mode=mode, **options))


def _learning_rate(state: SequenceState, options: dict[str, Any]) -> dict[str, Any]:
    quiet = contextlib.nullcontext() if state.settings.progress_bar else _compat_loops.no_search_bar()
    with quiet, _tuner(state) as (tuner, module, datamodule):
        finder = tuner.lr_find(module, datamodule=datamodule, update_attr=False, **options)
    rates, losses = list(map(float, finder.results["lr"])), list(map(float, finder.results["loss"]))
    lr = steepest_learning_rate(rates, losses)
    if lr is None:
        raise InputError(
            f"tune.lr_find found no learning rate in {len(rates)} steps (the loss falls nowhere)",
            "more steps, or another range",
            "tune.lr={num_training: 200, min_lr: 1e-6, max_lr: 10}, or set optimizer.lr",
        )
    return {"lr": lr, "lr_curve": {"lr": rates, "loss": losses}}


@contextmanager
def _tuner(state: SequenceState) -> Iterator[tuple[Any, Any, Any]]:
    """A tuner, a module and data for it, all of which are thrown away."""
    from lightning.pytorch.tuner import Tuner

    settings = state.settings
    task = state.stream[state.n_tasks - 1 if settings.training_data == "all" else 0]
    # a copy without validation: each pass over it would be repeated for every epoch of the search
    datamodule = task_data(state, task)
    datamodule.task = replace(datamodule.task, validation=None)
    with whole(state.module):
        module = copy.deepcopy(state.module)
    if dict(getattr(module, "hparams", {})):
        plain = loadable(dict(module.hparams))
        module.hparams.clear()
        module.hparams.update(plain)
    with tempfile.TemporaryDirectory() as folder:
        trainer = state.trainer(
            callbacks=[copy.deepcopy(c) for c in state.callbacks if hasattr(c, "as_fitted")],
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            max_epochs=-1,
        )
        yield Tuner(trainer), module, datamodule
