"""Several processes that learn one sequence: who writes, and how the others know.

Every process runs the same code. Files of the run folder are written by the first process only; whatever is decided by
looking at files is decided there, and told to the others.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from lightning_cl import _compat, signals
from lightning_cl._compat_exit import settle_if_connected
from lightning_cl._compat_fsdp2 import make_whole

if TYPE_CHECKING:
    from lightning_cl.sequence.state import SequenceState

Value = TypeVar("Value")


def connect(state: "SequenceState") -> None:
    """Start the other processes, or meet them, and begin with the same weights; nothing if there is only this one.

    Raises:
        InputError: For strategies that copy the process, so that what callbacks learn is lost.
    """
    trainer = state.trainer(enable_progress_bar=False, enable_checkpointing=False)
    if trainer.world_size == 1:
        return
    make_whole(state.module)
    _compat.join_processes(trainer, state.module)
    settle_if_connected()
    # what a callback copies before the first fit (anchor, teacher) must be the same everywhere
    with torch.no_grad():
        for tensor in [*state.module.parameters(), *state.module.buffers()]:
            sent = tensor.detach().to(trainer.strategy.root_device)
            dist.broadcast(sent, 0)
            tensor.copy_(sent)


def is_first() -> bool:
    """Whether this process writes."""
    return not connected() or dist.get_rank() == 0


def connected() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def on_first(decide: Callable[[], Value]) -> Value:
    """What ``decide`` returns in the first process, in all of them; what it raises there is raised in all of them."""
    if not connected():
        return decide()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = decide()
        except Exception as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, 0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def stop_if_asked() -> None:
    """Leave the sequence between two stages, if a signal has come to any process.

    Raises:
        StopRequested: In all of them.
    """
    number = signals.received()
    if connected():
        numbers: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(numbers, number)
        number = max(numbers)
    if number:
        raise signals.StopRequested(number)
