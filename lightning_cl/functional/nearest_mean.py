"""Classification by the nearest class mean on normalised features."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def class_means(features: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    r"""The direction of each class's mean of normalised features.

    .. math:: \mu_c = \frac{m_c}{\|m_c\|}, \qquad m_c = \frac{1}{n_c}\sum_{i: y_i=c} \frac{\phi_i}{\|\phi_i\|}

    Rebuffi et al. 2017, arXiv:1611.07725 (iCaRL).

    Args:
        features: phi, (N, d).
        labels: Classes, (N,) long, in ``[0, n_classes)``.
        n_classes: C.

    Returns:
        (C, d), each row of length 1, or zero for a class without samples.

    Example:
        >>> class_means(torch.tensor([[2.0, 0.0], [0.0, 5.0]]), torch.tensor([1, 1]), 2)
        tensor([[0.0000, 0.0000],
                [0.7071, 0.7071]])
    """
    sums = torch.zeros(n_classes, features.shape[1], dtype=features.dtype, device=features.device)
    # the length of a sum is no matter: it is divided out
    return normalize(sums.index_add(0, labels, normalize(features, dim=1)), dim=1)


def nearest_mean_scores(features: Tensor, means: Tensor) -> Tensor:
    r"""Scores whose largest is the nearest mean: :math:`-\|\phi/\|\phi\| - \mu_c\|^2`.

    Args:
        features: phi, (N, d).
        means: (C, d), rows of length 1, or zero for a class that has no mean.

    Returns:
        (N, C), between -4 and 0; -5, below all others, for a class without a mean.

    Example:
        >>> nearest_mean_scores(torch.tensor([[3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist()
        [[0.0, -2.0]]
    """
    scores = 2 * normalize(features, dim=1) @ means.T - 2
    return scores.masked_fill(~has_mean(means), -5.0)


def has_mean(means: Tensor) -> Tensor:
    """Which classes have a mean, (C,) bool."""
    return means.abs().amax(1) > 0
