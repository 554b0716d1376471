"""Requests to stop that come by signal: noted when they come, acted upon where nothing is lost. Imports nothing heavy.

SIGTERM is what schedulers send before they take a machine away; SIGUSR1 and SIGUSR2 what they send some time before a
time limit. A handler that saved at once would do so in the middle of a step, in one of several processes.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from lightning_cl.errors import Stopped

NUMBERS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
_received: list[int] = []
_handlers: list[dict[int, Any]] = []


class StopRequested(Stopped):
    """A signal asked to stop; everything is saved, and the same command goes on.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        self.number = int(number)
        name = "terminated" if number == signal.SIGTERM else f"stopped by {signal.Signals(number).name}"
        super().__init__(f"{name}; the same command goes on")

    def __reduce__(self) -> tuple[type["StopRequested"], tuple[int]]:
        """Keep the number when the error crosses a process border."""
        return type(self), (self.number,)


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Note these signals inside the block; the outermost block puts the handlers back that were there.

    Only the main thread can; in another one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if not _handlers:
        _received.clear()
    _handlers.append({number: signal.signal(number, _note) for number in NUMBERS})
    try:
        yield
    finally:
        _restore(_handlers.pop())


def let_go() -> None:
    """Put back the handlers that were there before the outermost block, for good."""
    if _handlers:
        _restore(_handlers[0])


def active() -> bool:
    """Whether somebody listens."""
    return bool(_handlers)


def received() -> int:
    """The first of these signals that came, or 0."""
    return _received[0] if _received else 0


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        # None: it was not set from Python, and cannot be
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _note(number: int, frame: FrameType | None) -> None:
    _received.append(number)


def shared(number: int, device: Any) -> int:
    """The signal that came to any of the processes that learn together, or 0; all of them must call this."""
    import torch

    value = torch.tensor(number, device=device)
    torch.distributed.all_reduce(value, torch.distributed.ReduceOp.MAX)
    return int(value)
