"""What methods share that choose the samples of each fit, instead of changing its loss."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

from lightning_cl.callbacks._memory_options import FIXED_POLICY, MemoryOptions, refuse_options
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.memory import Memory, find_labels
from lightning_cl.streams.data import Data
from lightning_cl.streams.stored_data import stored_data
from lightning_cl.streams.stream import merge_tasks
from lightning_cl.streams.task import Task

#: The memory is filled from the data alone, by a policy of the method's own, and is the data of the next fit.
REFUSED = {
    **FIXED_POLICY,
    "memory_bytes": "set memory_size, which says how long a fit is",
    "stores": "leave it out, or use storage='disk'",
}


class OwnData(MethodCallback):
    """Base of methods that say what a fit of :func:`~lightning_cl.run_sequence` trains on.

    Args:
        memory: Stored samples, or None.
        name: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    State: the memory.
    """

    #: how a fit draws from its data, see :class:`~lightning_cl.streams.TaskLoader`
    sampling: Literal["once", "uniform", "class_balanced"] = "once"
    #: whether a fit with a compute budget goes on until its share is spent, whatever the Trainer's limits
    spends_budget = False
    #: epochs of a fit instead of the Trainer's
    max_epochs: int | None = None

    def __init__(self, memory: Memory | None, *, name: str) -> None:
        super().__init__(name=name)
        self.memory = memory

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        return 0 if self.memory is None else self.memory.nbytes

    @property
    def off(self) -> bool:
        """Whether the memory can hold nothing; the method is then left out, so that training is naive."""
        return self.memory is not None and self.memory.size == 0

    def training_task(self, task: Task, seen: Sequence[Task]) -> Task:
        """What the fit of ``task`` trains on.

        Args:
            task: The task that is learnt now.
            seen: All tasks so far, this one included.
        """
        raise NotImplementedError

    def pool_size(self, sizes: Sequence[int]) -> int:
        """How many samples the fit of a task draws from.

        Args:
            sizes: Training samples of the tasks so far, this one included.
        """
        raise NotImplementedError

    def epoch_size(self, task: Task) -> int | None:
        """Draws in an epoch, for a ``sampling`` that draws."""
        return None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse a Trainer that is not run over a stream."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not self.off and getattr(trainer.datamodule, "own_data", None) is not self:
            raise InputError(
                f"{type(self).__name__} in a Trainer of your own",
                "run_sequence, which gives it the tasks",
                "use run_sequence(module, stream, [...]), or Replay in your own Trainer",
            )

    def _fill(self, loader: Any) -> None:
        """Offer every sample of a loader to the memory, once."""
        assert self.memory is not None
        for batch in loader:
            self.memory.add(batch, find_labels(batch))

    def _stored(self) -> Data:
        """The memory as data; its samples are as they were served, and are not augmented again."""
        assert self.memory is not None
        return stored_data(self.memory.at(slice(0, len(self.memory))))

    def _merged(self, task: Task, seen: Sequence[Task], train: Any = None) -> Task:
        """All classes and validation data so far, with these training data; with all of them by default."""
        merged = merge_tasks(seen, id=task.id, name=task.name)
        return merged if train is None else dataclasses.replace(merged, train=train)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        pass

    def _state(self) -> dict[str, Any]:
        return {"memory": None if self.memory is None else self.memory.state_dict()}

    def _load(self, state: dict[str, Any]) -> None:
        if (state["memory"] is None) != (self.memory is None):
            given = "without a memory" if state["memory"] is None else f"with memory_size={state['memory']['size']}"
            raise InputError(f"the state of {self.name} {given}", "the same memory_size", "start anew")
        if self.memory is not None:
            self.memory.load_state_dict(state["memory"])


def own_memory(method: str, size: int, policy: str, seed: int, options: MemoryOptions) -> Memory:
    """The memory of a method, with the options that it can take.

    Raises:
        InputError: For the others, by name.
    """
    refuse_options(method, options, REFUSED)
    taken: dict[str, Any] = {name: value for name, value in options.items() if name not in REFUSED}
    return Memory(size, policy, seed, **taken)
