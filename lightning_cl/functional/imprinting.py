"""Class vectors taken from features instead of being drawn."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def imprinted_rows(features: Tensor, k: int = 1, seed: int = 0) -> Tensor:
    r"""``k`` vectors for one class from its features.

    For k = 1 the mean of the L2-normalised features (weight imprinting, Qi et al. 2018, as in LUCIR, Hou et al. 2019);
    for more the centres of k-means of the normalised features, as in PODNet (Douillard et al. 2020). With fewer
    features than vectors, features are taken again.

    Args:
        features: ``(M, d)``, M >= 1.
        k: Vectors.
        seed: Seed of k-means.

    Returns:
        ``(k, d)``, fp32, on the CPU; not normalised.

    Example:
        >>> imprinted_rows(torch.tensor([[2.0, 0.0], [0.0, 5.0]]))
        tensor([[0.5000, 0.5000]])
    """
    if features.ndim != 2 or len(features) == 0:
        raise ValueError(
            f"features of shape {tuple(features.shape)}; expected (M, d), M >= 1. HINT: one class at a time"
        )
    directions = normalize(features.detach().float().cpu(), dim=-1)
    if k == 1:
        return directions.mean(0, keepdim=True)
    if len(directions.unique(dim=0)) <= k:
        return directions[torch.arange(k) % len(directions)]
    from sklearn.cluster import KMeans

    found = KMeans(k, n_init=1, random_state=seed % 2**32).fit(directions.double().numpy())
    return torch.from_numpy(found.cluster_centers_).float()
