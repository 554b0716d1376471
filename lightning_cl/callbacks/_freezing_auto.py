"""Phases of a freezing schedule that are found at the start of a fit."""

import logging
from typing import Any

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning.auto_freeze import auto_phases

log = logging.getLogger(__name__)
OPTIONS = ("head", "threshold", "max_batches", "head_epochs", "loss_fn", "seed")


def refuse_unknown_options(options: dict[str, Any]) -> None:
    """Raise for an option that the choice does not have."""
    unknown = sorted(options.keys() - set(OPTIONS))
    if unknown:
        raise InputError(f"freeze='auto' with {', '.join(unknown)}", ", ".join(OPTIONS), "leave the others out")


def found_phases(
    trainer: Any, module: Any, groups: Any, options: dict[str, Any], name: str, printed: bool
) -> list[dict[str, Any]]:
    """The phases for the data that the Trainer is about to train on; says which and why.

    Args:
        trainer: The Trainer, in ``on_fit_start``.
        module: The module.
        groups: Depth groups.
        options: Of :func:`~lightning_cl.finetuning.auto_freeze.auto_phases`.
        name: Of the schedule.
        printed: Whether to print it too.
    """
    phases, explanation = auto_phases(module, _compat.train_source(trainer).dataloader(), groups, **options)
    for line in explanation.splitlines():
        log.info("%s: %s", name, line)
    if printed:
        print(f"{name}: what to train\n{explanation}")
    return phases
