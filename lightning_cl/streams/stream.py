"""An ordered sequence of tasks."""

import hashlib
from collections.abc import Sequence
from typing import Any, overload

import torch

from lightning_cl.errors import InputError
from lightning_cl.streams.concat_data import concatenate_data
from lightning_cl.streams.data import Data
from lightning_cl.streams.task import Task


class Stream(Sequence[Task]):
    """Tasks in the order in which they are learnt.

    Args:
        name: Name of the stream, as in ``stream=split_mnist``.
        scenario: ``class_incremental``, ``task_incremental``, ``domain_incremental``, ``data_incremental`` or
            ``online``, ``blurry`` or ``gradual``.
        tasks: The tasks, with ids 0, 1, ...
        class_names: All class names in order of first appearance; labels index this list.
        has_boundaries: Whether a method may know where a task ends. Without boundaries a task is only a stretch of the
            stream behind which results are written: methods that need to know are refused, and an optimizer keeps its
            state.
        tokenizer: What made the inputs of texts; a run saves it in its folder.

    Raises:
        InputError: If there is no task, or a task has no training or test samples.
    """

    def __init__(
        self,
        name: str,
        scenario: str,
        tasks: Sequence[Task],
        class_names: Sequence[str],
        *,
        has_boundaries: bool = True,
        tokenizer: Any = None,
    ) -> None:
        self.name, self.scenario, self.has_boundaries = name, scenario, has_boundaries
        self.tokenizer = tokenizer
        self.tasks, self.class_names = list(tasks), list(class_names)
        if not self.tasks:
            raise InputError(f"stream {name!r} without tasks", "at least one task", "set stream.n_tasks=2")
        for task in self.tasks:
            for part, data in (("training", task.train), ("test", task.test)):
                if len(data) == 0:
                    raise InputError(
                        f"{task.name!r} of stream {name!r} has no {part} samples",
                        "a task that is not empty",
                        "use fewer tasks, a smaller validation_fraction, or check the data set's labels",
                    )
        self._input_shape: tuple[int, ...] | None = None

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> list[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | list[Task]:
        """A task, or several."""
        return self.tasks[index]

    def __len__(self) -> int:
        """Number of tasks."""
        return len(self.tasks)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as served, from the first sample; of texts, (the most tokens of one,)."""
        if self._input_shape is None:
            data = self.tasks[0].train
            shape = getattr(data, "input_shape", None)
            self._input_shape = tuple(data.batch(torch.tensor([0]))[0].shape[1:] if shape is None else shape)
        return self._input_shape

    def fingerprint(self, task_id: int) -> str:
        """A hash of a task's classes, sizes and labels (and the tokens of texts): the same in any process.

        A resumed run compares it, so that appending tasks is allowed and changing a learnt one is noticed.
        """
        task = self.tasks[task_id]
        parts = [task.train, task.validation, task.test]
        digest = hashlib.blake2b(digest_size=16)
        digest.update(repr((task.classes, task.class_indices, [0 if p is None else len(p) for p in parts])).encode())
        for part in parts:
            if part is not None:
                digest.update(part.targets.contiguous().numpy().tobytes())
                digest.update(getattr(part, "digest", bytes)())
        return digest.hexdigest()


def merge_tasks(tasks: Sequence[Task], *, id: int, name: str) -> Task:
    """One task with the data and classes of several: for joint and cumulative training.

    Args:
        tasks: What to merge, in order; the first one's seed is kept.
        id: Id of the result.
        name: Name of the result.
    """
    classes = dict(pair for task in tasks for pair in zip(task.class_indices, task.classes, strict=True))
    validation: list[Data] = [task.validation for task in tasks if task.validation is not None]
    return Task(
        id=id,
        name=name,
        classes=tuple(classes.values()),
        class_indices=tuple(classes),
        train=concatenate_data([task.train for task in tasks]),
        validation=concatenate_data(validation) if validation else None,
        test=concatenate_data([task.test for task in tasks]),
        seed=tasks[0].seed,
    )
