"""Rows of unequal length, made into a rectangle."""

import torch
from torch import Tensor


def pad_rows(flat: Tensor, starts: Tensor, lengths: Tensor, filler: float = 0) -> tuple[Tensor, Tensor]:
    """Stretches of ``flat`` as one tensor, filled up on the right to the longest one.

    Args:
        flat: Values (M,) of all rows, one row behind the other.
        starts: Where each row starts (N,), long.
        lengths: How long each is (N,), long.
        filler: What stands behind a row's values.

    Returns:
        Values (N, L) and a mask (N, L), true where a row has a value; L is the longest row's length.

    Example:
        >>> values, mask = pad_rows(torch.tensor([1, 2, 3]), torch.tensor([0, 2]), torch.tensor([2, 1]), 9)
        >>> values.tolist(), mask.tolist()
        ([[1, 2], [3, 9]], [[True, True], [True, False]])
    """
    width = int(lengths.max()) if len(lengths) else 0
    columns = torch.arange(width, device=flat.device)
    mask = columns < lengths.unsqueeze(1)
    places = (starts.unsqueeze(1) + columns).masked_fill(~mask, 0)
    values = flat[places] if len(flat) else flat.new_zeros(places.shape)
    return values.masked_fill(~mask, filler), mask
