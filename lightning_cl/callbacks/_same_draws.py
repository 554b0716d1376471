"""A training step that runs twice, with the same random numbers both times."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


class SameDraws:
    """Lets a second run of a ``training_step`` augment its batch as the first one did.

    The global generators are put back to where they were before the first run, and behind the second to where the first
    one left them. Those that the first step of a fit did not touch are not looked at again: reading their states costs
    more than a step of a small model.

    Example::

        draws.note(device)      # before the first run
        with draws.again():     # the second run
    """

    def __init__(self) -> None:
        self._touched: list[str] | None = None
        self._before: dict[str, Any] = {}
        self._places: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {}

    def note(self, device: torch.device) -> None:
        """The first run begins."""
        if self._touched is None:
            self._places = _places(device)
        self._before = {name: self._places[name][0]() for name in self._looked_at}

    @contextmanager
    def again(self) -> Iterator[None]:
        """The second run, inside the block."""
        after = {name: self._places[name][0]() for name in self._looked_at}
        if self._touched is None:
            self._touched = [name for name in after if not _equal(after[name], self._before[name])]
        try:
            self._set(self._before)
            yield
        finally:
            self._set(after)

    @property
    def _looked_at(self) -> list[str]:
        return list(self._places) if self._touched is None else self._touched

    def _set(self, states: dict[str, Any]) -> None:
        for name in self._looked_at:
            self._places[name][1](states[name])


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return all(np.array_equal(one, two) for one, two in zip(a, b, strict=True))  # numpy's tuples hold an array


def _places(device: torch.device) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """Name -> how a generator's state is read and written."""
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
        "torch": (torch.get_rng_state, torch.set_rng_state),
        "numpy": (np.random.get_state, np.random.set_state),
        "python": (random.getstate, random.setstate),
    }
    if device.type == "cuda":
        found["cuda"] = (
            lambda: torch.cuda.get_rng_state(device),
            lambda state: torch.cuda.set_rng_state(state, device),
        )
    return found
