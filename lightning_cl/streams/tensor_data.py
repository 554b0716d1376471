"""Data sets that fit in memory as one tensor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.randomness import augment_each


class TensorData:
    """Samples in one tensor, served by whole-batch indexing (tens of microseconds for 128 MNIST images).

    ``x`` can be shared between any number of tasks: ``rows`` says which of its rows belong to this one, so that a
    stream of permuted or split tasks costs no copy. Served are float32 images: uint8 is divided by 255, then come
    augmentation (training only), ``task_transform`` and normalisation, each on the whole batch. (Held ready as float32,
    MNIST is not served faster than from uint8, and takes four times the memory.)

    Args:
        x: Inputs (M, ...), uint8 or floating point.
        y: Labels (N,) long, one for each of ``rows``.
        task_transform: ``f(x, ids) -> x`` on a float batch; see ``data.TaskTransform``.
        augment: A random transform of one sample, or of a batch if it has a true attribute ``batched``.
        task_id: If given, batches are ``(x, y, task)`` (task_incremental). A tensor (N,) gives each sample its own.
        normalize: (mean, standard deviation), each one number per channel.
        rows: Rows of ``x`` that are served (N,) long; by default all.
        seed: Seed of the augmentation.
        first_id: Added to the row to make a sample's id, so that training and test samples differ in their noise.

    Raises:
        InputError: If numbers of inputs and labels differ.

    Example:
        >>> data = TensorData(torch.arange(6).view(3, 2).to(torch.uint8), torch.tensor([0, 1, 0]))
        >>> x, y = data.batch(torch.tensor([2, 0]))
        >>> (x * 255).round().tolist(), y.tolist()
        ([[4.0, 5.0], [0.0, 1.0]], [0, 0])
    """

    cheap = True

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        task_transform: TaskTransform | None = None,
        augment: Callable[..., Any] | None = None,
        task_id: int | Tensor | None = None,
        normalize: tuple[Any, Any] | None = None,
        *,
        rows: Tensor | None = None,
        seed: int = 0,
        first_id: int = 0,
    ) -> None:
        n = len(x) if rows is None else len(rows)
        if n != len(y):
            raise InputError(f"{n} inputs and {len(y)} labels", "one label per input", "check the data set's labels")
        if x.is_complex():
            raise InputError(f"inputs of {x.dtype}", "real numbers", "take the absolute value, or two channels")
        self.x, self.rows, self.targets = x, rows, y.long()
        self.task_transform, self.augment, self.normalize = task_transform, augment, normalize
        self.task_ids = None if task_id is None else torch.as_tensor(task_id, dtype=torch.long).expand(n)
        self.seed, self.first_id = seed, first_id
        #: whether rows of ``x`` are positions in a data set
        self.named = True
        self._scale = None if normalize is None else tuple(per_channel(part, x.dim()) for part in normalize)

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as served."""
        return tuple(self.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> tuple[Tensor, ...]:
        """The samples at ``indices``; see ``Data.batch``."""
        rows = indices if self.rows is None else self.rows.index_select(0, indices)
        x = self.x.index_select(0, rows)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if augment and self.augment is not None:
            x = augment_each(self.augment, x, rows + self.first_id, self.seed, epoch)
        if self.task_transform is not None:
            x = self.task_transform(x, rows + self.first_id)
        if self._scale is not None:
            x = (x - self._scale[0]) / self._scale[1]
        y = self.targets.index_select(0, indices)
        return (x, y) if self.task_ids is None else (x, y, self.task_ids.index_select(0, indices))

    def sample_ids(self, indices: Tensor) -> Tensor | None:
        """What names the samples at ``indices``, (N,) long: their positions in the data set; None without ``named``."""
        if not self.named:
            return None
        return (indices if self.rows is None else self.rows.index_select(0, indices)) + self.first_id

    def view(self, indices: Tensor, targets: Tensor | None = None, **changes: Any) -> "TensorData":
        """Some of the samples as new data on the same storage, with other labels or constructor arguments."""
        rows = indices if self.rows is None else self.rows[indices]
        task_id = None if self.task_ids is None else self.task_ids[indices]
        y = self.targets[indices] if targets is None else targets
        return TensorData(self.x, y, rows=rows, **{**self._arguments(), "task_id": task_id, **changes})

    def padded(self, pad: int) -> "TensorData":
        """The same images with ``pad`` zeros on each side of the last two dimensions (a copy)."""
        x = torch.nn.functional.pad(self.x, [pad] * 4)
        return TensorData(x, self.targets, rows=self.rows, **{**self._arguments(), "task_id": self.task_ids})

    def _arguments(self) -> dict[str, Any]:
        """What a view keeps, without what is per sample."""
        names = ("task_transform", "augment", "normalize", "seed", "first_id")
        return {name: getattr(self, name) for name in names}


def per_channel(value: Any, dims: int) -> Tensor:
    """A number or one per channel, shaped to broadcast over (N, C, ...)."""
    value = torch.as_tensor(value, dtype=torch.float32)
    return value if value.dim() == 0 else value.view(1, -1, *[1] * (dims - 2))
