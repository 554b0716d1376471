"""What is used of ``torch.utils.flop_counter`` beyond its documentation."""

from typing import Any

from torch.utils.flop_counter import FlopCounterMode


class _NoModules:
    """In place of the tracker of modules: all is counted in one sum."""

    parents = ("Global",)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        pass


def flop_counter() -> FlopCounterMode:
    """A counter of the total alone.

    The counts by module, which nobody reads here, walk through all children at each call: with a metric for each of
    many test sets, whose ``==`` makes a new metric, that is most of the time of an evaluation.
    """
    counter = FlopCounterMode(display=False)
    if hasattr(counter, "mod_tracker"):
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    return counter
