"""Some samples of a data set."""

from typing import Any

from torch import Tensor

from lightning_cl.streams.data import Data, sample_ids


class SelectedData:
    """The samples at some indices of any data; each keeps its transforms and its own randomness.

    Args:
        data: What is selected from.
        indices: Which samples, (N,) long.
    """

    def __init__(self, data: Data, indices: Tensor) -> None:
        self.data, self.indices = data, indices
        self.targets, self.cheap = data.targets[indices], data.cheap

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.indices)

    def batch(self, indices: Tensor, *, epoch: int = 0, augment: bool = False) -> Any:
        """The samples at ``indices``; see ``Data.batch``."""
        return self.data.batch(self.indices[indices], epoch=epoch, augment=augment)

    def sample_ids(self, indices: Tensor) -> Tensor | None:
        """What the data call the samples at ``indices``."""
        return sample_ids(self.data, self.indices[indices])
