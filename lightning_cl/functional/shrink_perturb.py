"""A start between the old weights and new ones."""

from collections.abc import Mapping

import torch
from torch import Tensor


def shrink_and_perturb(
    parameters: Mapping[str, Tensor], fresh: Mapping[str, Tensor], shrink: float, perturb: float
) -> None:
    r"""Change parameters in place: :math:`\theta \leftarrow a\,\theta + b\,\theta_{new}`.

    Ash & Adams 2020, arXiv:1910.08475. With a = 1 and b = 0 no bit of them changes.

    Args:
        parameters: By name, of any shapes.
        fresh: Newly initialised values of the same names and shapes; a parameter without one is left as it is.
        shrink: a.
        perturb: b.

    Example:
        >>> weights = {"w": torch.tensor([2.0, -4.0])}
        >>> shrink_and_perturb(weights, {"w": torch.tensor([1.0, 1.0])}, 0.5, 0.1)
        >>> weights["w"]
        tensor([ 1.1000, -1.9000])
    """
    with torch.no_grad():
        for name, new in fresh.items():
            if shrink != 1:
                parameters[name].mul_(shrink)
            if perturb != 0:
                parameters[name].add_(new.to(parameters[name]), alpha=perturb)
