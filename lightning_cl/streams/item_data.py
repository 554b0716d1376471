"""Any map-style data set, sample by sample."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.randomness import augment_each, global_generators_kept, set_global_generators
from lightning_cl.streams.tensor_data import per_channel


class ItemData:
    """Samples of a map-style data set, read one by one; worker processes can do it.

    The input is the first element of ``dataset[i]`` (or the item itself if it is no tuple or list); its label is taken
    from ``targets``. PIL images and uint8 arrays become float tensors in [0, 1]. Everything random, in ``dataset[i]``
    itself too, runs under generators seeded by (seed, epoch, index); without augmentation always as in epoch 0.

    Args:
        dataset: The data set, of any length.
        indices: Its items that are served (N,) long; None for all.
        targets: Labels (N,) long.
        transform: Applied to each input before it becomes a tensor (a resize to one size, for instance).
        augment: Random transform of one sample, in training only; also batched, see ``TensorData``.
        task_transform: ``f(x, ids) -> x`` on a float batch; see ``data.TaskTransform``.
        task_id: If given, batches are ``(x, y, task)``.
        normalize: (mean, standard deviation), each one number per channel.
        seed: Seed of everything random.
        first_id: Added to the index to make a sample's id.
        pad: Zeros added on each side of the last two dimensions.

    Raises:
        InputError: If numbers of indices and labels differ.
    """

    cheap = False

    def __init__(
        self,
        dataset: Any,
        indices: Tensor | Sequence[int] | None,
        targets: Tensor,
        transform: Callable[[Any], Any] | None = None,
        augment: Callable[..., Any] | None = None,
        *,
        task_transform: TaskTransform | None = None,
        task_id: int | Tensor | None = None,
        normalize: tuple[Any, Any] | None = None,
        seed: int = 0,
        first_id: int = 0,
        pad: int = 0,
    ) -> None:
        self.dataset = dataset
        self.indices = torch.arange(len(dataset)) if indices is None else torch.as_tensor(indices, dtype=torch.long)
        if len(self.indices) != len(targets):
            raise InputError(
                f"{len(self.indices)} inputs and {len(targets)} labels",
                "one label per input",
                "check the data set's labels",
            )
        self.targets = targets.long()
        self.transform, self.augment, self.task_transform = transform, augment, task_transform
        self.task_ids = None if task_id is None else torch.as_tensor(task_id, dtype=torch.long).expand(len(targets))
        self.normalize, self.seed, self.first_id, self.pad = normalize, seed, first_id, pad

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.targets)

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> tuple[Tensor, ...]:
        """The samples at ``indices``; see ``Data.batch``."""
        items, ids = self.indices[indices], self.indices[indices] + self.first_id
        epoch = epoch if augment else 0
        with global_generators_kept():
            samples = []
            for item, name in zip(items.tolist(), ids.tolist(), strict=True):
                set_global_generators(derive_seed(self.seed, "item", epoch, name))
                samples.append(self._read(item))
        x = self._stacked(samples, items)
        if self.pad:
            x = torch.nn.functional.pad(x, [self.pad] * 4)
        if augment and self.augment is not None:
            x = augment_each(self.augment, x, ids, self.seed, epoch)
        if self.task_transform is not None:
            x = self.task_transform(x, ids)
        if self.normalize is not None:
            mean, deviation = (per_channel(part, x.dim()) for part in self.normalize)
            x = (x - mean) / deviation
        y = self.targets[indices]
        return (x, y) if self.task_ids is None else (x, y, self.task_ids[indices])

    def sample_ids(self, indices: Tensor) -> Tensor:
        """What names the samples at ``indices``, (N,) long: their positions in the data set."""
        return self.indices[indices] + self.first_id

    def view(self, indices: Tensor, targets: Tensor | None = None, **changes: Any) -> "ItemData":
        """Some of the samples as new data, with other labels or constructor arguments."""
        arguments: dict[str, Any] = {
            "transform": self.transform,
            "augment": self.augment,
            "task_transform": self.task_transform,
            "task_id": None if self.task_ids is None else self.task_ids[indices],
            "normalize": self.normalize,
            "seed": self.seed,
            "first_id": self.first_id,
            "pad": self.pad,
        }
        y = self.targets[indices] if targets is None else targets
        return ItemData(self.dataset, self.indices[indices], y, **{**arguments, **changes})

    def padded(self, pad: int) -> "ItemData":
        """The same images with ``pad`` zeros on each side of the last two dimensions."""
        return self.view(torch.arange(len(self)), pad=self.pad + pad)

    def _stacked(self, samples: list[Tensor], items: Tensor) -> Tensor:
        for item, sample in zip(items.tolist(), samples, strict=True):
            if sample.shape != samples[0].shape:
                raise InputError(
                    f"input of shape {tuple(sample.shape)} at item {item}, {tuple(samples[0].shape)} at others",
                    "inputs of one shape",
                    "resize them in the data set",
                )
        return default_collate(samples)

    def _read(self, item: int) -> Tensor:
        try:
            return self._tensor_of(item)
        except Exception as error:  # the data set's own code
            raise InputError(
                f"item {item} of the data set ({type(error).__name__}: {error})",
                "(input, label), the input an image or a tensor of numbers",
                "HYDRA_FULL_ERROR=1 shows where it failed",
            ) from error

    def _tensor_of(self, item: int) -> Tensor:
        sample = self.dataset[item]
        x = sample[0] if isinstance(sample, tuple | list) else sample
        if self.transform is not None:
            x = self.transform(x)
        if not isinstance(x, Tensor) and hasattr(x, "getbands"):
            from torchvision.transforms.functional import pil_to_tensor

            x = pil_to_tensor(x)
        x = torch.as_tensor(x)
        if x.is_complex():
            raise TypeError("complex numbers")
        return x.float().div(255) if x.dtype == torch.uint8 else x.float()
