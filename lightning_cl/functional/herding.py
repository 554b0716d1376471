"""Herding: samples whose mean is the mean of all, one after the other."""

import torch
from torch import Tensor


def herding_order(features: Tensor, m: int) -> Tensor:
    r"""The first ``m`` samples of a greedy order in which every prefix has a mean near that of all samples.

    .. math:: i_k = \arg\min_{i \notin \{i_1, ..., i_{k-1}\}}
        \left\| \mu - \frac{1}{k}\Big(\phi_i + \sum_{j<k} \phi_{i_j}\Big) \right\|, \quad
        \mu = \frac{1}{N}\sum_i \phi_i

    Welling 2009; Rebuffi et al. 2017, arXiv:1611.07725, algorithm 4 (on features of length 1: normalise them before).
    A sample is taken once; of equally good ones the first. Computed in float64; O(m N d) time, O(N d) memory.

    Args:
        features: (N, d).
        m: Samples wanted; all N if there are fewer.

    Returns:
        Indices, (min(m, N),) long.

    Raises:
        ValueError: If ``m < 0``.

    Example:
        >>> herding_order(torch.tensor([[0.0], [1.0], [5.0]]), 2).tolist()
        [1, 2]
    """
    if m < 0:
        raise ValueError(f"m={m}; expected the number of samples wanted. HINT: m >= 0")
    x = features.detach().double()
    mean, total = x.mean(0), x.new_zeros(x.shape[1:])
    # |x - goal|^2 without |goal|^2, which is the same for all
    squares = x.square().sum(1)
    chosen: list[int] = []
    for k in range(1, min(m, len(x)) + 1):
        best = int((squares - 2 * (x @ (k * mean - total))).argmin())
        chosen.append(best)
        squares[best] = torch.inf
        total = total + x[best]
    return torch.tensor(chosen, dtype=torch.long, device=features.device)
