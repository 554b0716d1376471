"""Random augmentation of whole batches, each sample's a function of (seed, epoch, sample)."""

import torch
from torch import Tensor

from lightning_cl.streams.counter_noise import uniform


class RandomCropFlip:
    """Zero-pad, crop to the old size at a random place, and flip half of the images left to right.

    The usual CIFAR augmentation (He et al. 2016, section 4.2), for a batch at once.

    Args:
        padding: Zeros added on each side before the crop.
        flip: Whether images may be flipped.
    """

    batched = True

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding, self.flip = padding, flip

    def __call__(self, x: Tensor, ids: Tensor, seed: int) -> Tensor:
        """Augment images (N, C, H, W); the draw of a sample depends on its id and ``seed`` only."""
        n, _, height, width = x.shape
        draws = uniform(x.new_empty(n, 3), ids, seed)
        top, left = (draws[:, :2] * (2 * self.padding + 1)).long().unbind(1)
        rows = top.unsqueeze(1) + torch.arange(height)
        columns = left.unsqueeze(1) + torch.arange(width)
        if self.flip:
            columns = torch.where(draws[:, 2:] < 0.5, columns.flip(1), columns)
        padded = torch.nn.functional.pad(x, [self.padding] * 4)
        picked = padded.permute(0, 2, 3, 1)[torch.arange(n).view(n, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]
        return picked.permute(0, 3, 1, 2).contiguous()
