"""Training on samples drawn uniformly from everything stored."""

from collections.abc import Sequence
from typing import Any, Unpack

from lightning_cl.callbacks._memory_options import MemoryOptions, refuse_options
from lightning_cl.callbacks._own_data import OwnData, own_memory
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams.concat_data import concatenate_data
from lightning_cl.streams.task import Task


class UniformSampling(OwnData):
    """Goes on from the weights before, on samples drawn uniformly from all that is stored, the new task included.

    Under a compute budget no method that Prabhu et al. compared does better (CVPR 2023, arXiv:2303.11165), so that it
    is a method and the baseline to beat. The loss is the module's own. An epoch has as many draws (independent, with
    replacement) as the task has samples, so that a task costs what it costs without any method. With a ``budget`` a
    fit goes on until its share is spent, and the Trainer's ``max_epochs`` and ``max_steps`` say only what joint costs.

    Everything is stored unless ``memory_size`` is given: then all of the task that is learnt, and that many samples of
    those before, as they are served without augmentation.

    State: the memory, at most ``memory_size`` samples; nothing without one.

    Not supported: a Trainer of your own without :func:`~lightning_cl.run_sequence`; ``training_data`` other than
    ``"current"`` (this callback says what is trained on).

    Args:
        memory_size: Samples of earlier tasks that are kept; None keeps all, 0 leaves the method out.
        class_balanced: Draw a class first, then one of its samples, and keep a class-balanced memory; otherwise every
            sample is as likely as any other, and the memory is a reservoir.
        seed: Seed of what the memory keeps. The order of the draws follows the run's.
        name: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        **memory: ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``, ``deletion_log``: see
            :class:`~lightning_cl.memory.Memory`; with ``memory_size`` only. Other options are refused by name.

    Raises:
        InputError: For another ``memory_size``; in ``setup`` for what is not supported.
    """

    spends_budget = True

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        class_balanced: bool = True,
        seed: int = 0,
        name: str = "uniform",
        **memory: Unpack[MemoryOptions],
    ) -> None:
        if memory_size is None:
            hint = "set memory_size; without one all is read from the data"
            refuse_options("UniformSampling() of all that was seen", memory, dict.fromkeys(memory, hint))
            super().__init__(None, name=name)
        else:
            policy = "class_balanced" if class_balanced else "reservoir"
            own = own_memory("UniformSampling", memory_size, policy, derive_seed(seed, name), memory)
            super().__init__(own, name=name)
        self.sampling = "class_balanced" if class_balanced else "uniform"
        self.needs_data = self.memory is not None and not self.off

    def training_task(self, task: Task, seen: Sequence[Task]) -> Task:
        """The task with all before it, or with what the memory holds of them."""
        if self.memory is None:
            return self._merged(task, seen)
        stored = [self._stored()] if len(self.memory) else []
        return self._merged(task, seen, concatenate_data([task.train, *stored]))

    def pool_size(self, sizes: Sequence[int]) -> int:
        """The task and what is stored of those before."""
        before = sum(sizes[:-1])
        return sizes[-1] + (before if self.memory is None else min(before, self.memory.size))

    def epoch_size(self, task: Task) -> int:
        """As many draws as the task has samples."""
        return len(task.train)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        if self.memory is not None and not self.off:
            self._fill(loader)
