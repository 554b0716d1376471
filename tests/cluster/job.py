"""``lightning-cl`` that waits for a signal at a given place of its first attempt: ``job.py PLACE MARKER arguments``."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from lightning_cl import signals


def wait(marker: Path) -> None:
    """Say that the place is reached, and stay there until the signal is here; the next attempt does not."""
    if marker.exists() or os.environ.get("SLURM_PROCID", "0") != "0":
        return
    marker.touch()
    deadline = time.monotonic() + 120
    while not signals.received() and time.monotonic() < deadline:
        time.sleep(0.05)


def before(owner: Any, name: str, marker: Path, when: Any = lambda *_: True) -> None:
    """Wait before a method is called."""
    original = getattr(owner, name)

    def waiting(*args: Any, **keywords: Any) -> Any:
        if when(*args):
            wait(marker)
        return original(*args, **keywords)

    setattr(owner, name, waiting)


def prepare(place: str, marker: Path) -> None:
    from lightning_cl import EWC, FineTuningModule
    from lightning_cl.sequence import loop

    if place == "training":
        before(
            FineTuningModule,
            "training_step",
            marker,
            lambda module, *_: module._trainer and module._trainer.global_step == 1 and len(module.tasks) == 2,
        )
    elif place == "consolidation":
        before(EWC, "_consolidate", marker)
    elif place == "evaluation":
        before(FineTuningModule, "on_test_epoch_start", marker)
    elif place == "between tasks":
        before(loop, "save_boundary", marker, lambda state: state.progress["task"] == 1 and not state.progress["stage"])


if __name__ == "__main__":
    place, marker, *arguments = sys.argv[1:]
    sys.argv[1:] = arguments
    with signals.listening():
        prepare(place, Path(marker))
        from lightning_cl import cli

        code = cli.main()
    sys.exit(code)
