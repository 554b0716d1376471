"""What a task's data can do: serve any set of samples, reproducibly."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

TaskTransform = Callable[[Tensor, Tensor], Tensor]
"""``transform(x, ids) -> x``: what makes this task's inputs its own (permutation, rotation, corruption).

``x`` is a float batch (N, ...); ``ids`` (N,) long names the samples, so that noise can be a function of the sample.
"""


def sample_ids(data: Any, indices: Tensor) -> Tensor | None:
    """What names the samples at ``indices``, (N,) long, for data with a method ``sample_ids``; None for others.

    The same sample has the same id in every task and view of a data set.
    """
    names = getattr(data, "sample_ids", None)
    return None if names is None else names(indices)


@runtime_checkable
class Data(Protocol):
    """A finite labelled data set that serves batches by index.

    ``batch`` is a pure function: the same indices, epoch and flag give the same tensors, in any process and any order
    of calls. That is what makes results independent of ``num_workers`` and a resumed run equal to an uninterrupted one.

    Attributes:
        targets: Labels (N,) long, as indices into ``Stream.class_names``.
        cheap: True if a batch costs about as much as indexing tensors; workers are then never used.
    """

    targets: Tensor
    cheap: bool

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> Any:
        """The samples at ``indices`` (long): ``(x, y)``, or ``(x, y, task)`` in the task_incremental scenario.

        Text is a mapping: ``input_ids``, ``attention_mask``, ``labels``, and perhaps ``task``.
        """
        ...
