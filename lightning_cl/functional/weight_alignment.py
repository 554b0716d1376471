"""New classes' weight vectors made as long as the old ones'."""

import torch
from torch import Tensor


def alignment_factor(weight: Tensor, old: Tensor, new: Tensor) -> Tensor:
    r"""The factor for the rows of new classes that gives them the old rows' mean length.

    .. math:: \gamma = \frac{\frac{1}{|old|}\sum_{i \in old} \|w_i\|}{\frac{1}{|new|}\sum_{j \in new} \|w_j\|}

    Zhao et al. 2020, arXiv:1911.07053. Biases take no part.

    Args:
        weight: Rows of the classifier, (C, d).
        old, new: Indices of the classes, (K,) and (M,) long, neither empty.

    Returns:
        gamma, a scalar; 1 if the new rows are zero.

    Example:
        >>> alignment_factor(torch.tensor([[3.0, 4.0], [0.0, 10.0]]), torch.tensor([0]), torch.tensor([1]))
        tensor(0.5000)
    """
    lengths = weight.detach().double().norm(dim=1)
    of_new = lengths[new].mean()
    factor = torch.where(of_new > 0, lengths[old].mean() / of_new, torch.ones_like(of_new))
    return factor.to(weight.dtype)
