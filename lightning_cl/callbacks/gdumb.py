"""Greedy sampler and dumb learner."""

from collections.abc import Sequence
from typing import Any, Unpack

from lightning_cl.callbacks._memory_options import MemoryOptions
from lightning_cl.callbacks._own_data import OwnData, own_memory
from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams.task import Task


class GDumb(OwnData):
    """Keeps a class-balanced memory, and at each task's end trains the initial weights on it alone: GDumb.

    Prabhu, Torr & Dokania 2020 (ECCV). The samples of a task pass once, in their own order, and the memory takes them
    greedily (:class:`~lightning_cl.memory.policies.GDumb`); this is a stage, ``collect``, before the fit. Set
    ``reinitialize=true``, as ``method=gdumb`` does. The paper's schedule (SGD, cosine with restarts, cutmix) is not
    built in: ``scheduler=cosine`` and ``optimizer`` are the run's own.

    State: the memory, at most ``memory_size`` samples as they are served without augmentation, and its generators.

    Not supported: a Trainer of your own without :func:`~lightning_cl.run_sequence`; ``training_data`` other than
    ``"current"``; augmentation of what is stored.

    Args:
        memory_size: Samples kept in all; 0 leaves the method out.
        max_epochs: Epochs over the memory, >= 1; as many as the Trainer's by default, which is short training: a memory
            is small beside the tasks.
        seed: Seed of which samples are replaced.
        name: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``, ``deletion_log``: see
            :class:`~lightning_cl.memory.Memory`. Other options are refused by name.

    Raises:
        InputError: For other values; in ``setup`` for what is not supported.
    """

    needs_data = False

    def __init__(
        self,
        memory_size: int,
        *,
        max_epochs: int | None = None,
        seed: int = 0,
        name: str = "gdumb",
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(own_memory("GDumb", memory_size, "gdumb", derive_seed(seed, name), memory), name=name)
        if max_epochs is not None and (not isinstance(max_epochs, int) or max_epochs < 1):
            raise InputError(f"max_epochs={max_epochs!r}", "an integer >= 1, or null", "leave it out")
        self.max_epochs = max_epochs

    def training_task(self, task: Task, seen: Sequence[Task]) -> Task:
        """The memory alone."""
        return self._merged(task, seen, self._stored())

    def pool_size(self, sizes: Sequence[int]) -> int:
        """The memory."""
        assert self.memory is not None
        return min(sum(sizes), self.memory.size)

    def stages(self) -> list[Any]:
        """Fill the memory, before the fit."""
        from lightning_cl.sequence.state import Stage

        return [] if self.off else [Stage("collect", self._collect, after=None)]

    def _collect(self, state: Any, task: Task) -> None:
        from lightning_cl.streams.loader import TaskLoader

        settings = state.settings
        self._fill(TaskLoader(task.train, settings.eval_batch_size, num_workers=settings.num_workers))
