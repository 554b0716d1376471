"""Data sets that fit in memory as one tensor."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.randomness import augment_each

_HELD_BYTES = 64 * 2**20


class TensorData:
    """Samples in one tensor, served by whole-batch indexing (tens of microseconds for 128 MNIST images).

    ``x`` can be shared between any number of tasks: ``rows`` says which of its rows belong to this one, so that a
    stream of permuted or split tasks costs no copy. Served are float32 images: uint8 is divided by 255, then come
    augmentation (training only), ``task_transform`` and normalisation. Where there is a task transform and its result
    is small (64 MiB), it is computed once.

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
        self.x, self.rows, self.targets = x, rows, y.long()
        self.task_transform, self.augment, self.normalize = task_transform, augment, normalize
        self.task_ids = None if task_id is None else torch.as_tensor(task_id, dtype=torch.long).expand(n)
        self.seed, self.first_id = seed, first_id
        self._scale = None if normalize is None else tuple(_per_channel(part, x.dim()) for part in normalize)
        self._ready: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the computed copy behind when the data go to another process."""
        return {**self.__dict__, "_ready": None}

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample as served."""
        return tuple(self.batch(torch.zeros(1, dtype=torch.long))[0].shape[1:])

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> tuple[Tensor, ...]:
        """The samples at ``indices``; see ``Data.batch``."""
        if augment and self.augment is not None:
            x = self._transformed(indices, epoch)
        elif self._hold():
            assert self._ready is not None
            x = self._ready.index_select(0, indices)
        else:
            x = self._transformed(indices)
        y = self.targets.index_select(0, indices)
        return (x, y) if self.task_ids is None else (x, y, self.task_ids.index_select(0, indices))

    def view(self, indices: Tensor, targets: Tensor | None = None, **changes: Any) -> "TensorData":
        """Some of the samples as new data on the same storage, with other labels or constructor arguments."""
        rows = indices if self.rows is None else self.rows[indices]
        arguments: dict[str, Any] = {
            "task_transform": self.task_transform,
            "augment": self.augment,
            "task_id": None if self.task_ids is None else self.task_ids[indices],
            "normalize": self.normalize,
            "seed": self.seed,
            "first_id": self.first_id,
        }
        y = self.targets[indices] if targets is None else targets
        return TensorData(self.x, y, rows=rows, **{**arguments, **changes})

    def padded(self, pad: int) -> "TensorData":
        """The same images with ``pad`` zeros on each side of the last two dimensions (a copy)."""
        x = self.x if self.rows is None else self.x[self.rows]
        every = torch.arange(len(self))
        padded = TensorData(torch.nn.functional.pad(x, [pad] * 4), self.targets, first_id=self.first_id)
        return padded.view(every, augment=self.augment, normalize=self.normalize, seed=self.seed)

    def _hold(self) -> bool:
        """Whether the deterministic transform's result is held, computing it on first use."""
        if self._ready is None and self.task_transform is not None:
            sample = self._transformed(torch.zeros(1, dtype=torch.long))
            if sample.numel() * 4 * len(self) <= _HELD_BYTES:
                self._ready = torch.cat([self._transformed(part) for part in torch.arange(len(self)).split(1024)])
            else:
                self._hold = lambda: False  # type: ignore[method-assign]
        return self._ready is not None

    def _transformed(self, indices: Tensor, augment_epoch: int | None = None) -> Tensor:
        rows = indices if self.rows is None else self.rows.index_select(0, indices)
        x = self.x.index_select(0, rows)
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if augment_epoch is not None and self.augment is not None:
            x = augment_each(self.augment, x, rows + self.first_id, self.seed, augment_epoch)
        if self.task_transform is not None:
            x = self.task_transform(x, rows + self.first_id)
        if self._scale is not None:
            x = (x - self._scale[0]) / self._scale[1]
        return x


def _per_channel(value: Any, dims: int) -> Tensor:
    """A number or one per channel, shaped to broadcast over (N, C, ...)."""
    value = torch.as_tensor(value, dtype=torch.float32)
    return value if value.dim() == 0 else value.view(1, -1, *[1] * (dims - 2))
