"""The losses of LUCIR: keep directions of features, and keep new classes away from old samples."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def less_forget_loss(features: Tensor, old_features: Tensor) -> Tensor:
    r"""How far features have turned away from those of the old model, the mean over samples.

    .. math:: L_{dis}^G = 1 - \langle \bar f^*(x), \bar f(x) \rangle

    (Hou et al. 2019, CVPR, eq. 6.) Lengths do not count; a feature of length 0 has the loss 1.

    Args:
        features: ``(N, d)``.
        old_features: ``(N, d)`` of the old model.

    Returns:
        A scalar in [0, 2], at least fp32.

    Example:
        >>> less_forget_loss(torch.tensor([[3.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.5000)
    """
    if features.shape != old_features.shape:
        raise ValueError(
            f"features {tuple(features.shape)} and old_features {tuple(old_features.shape)}; expected equal shapes. "
            "HINT: both of the same batch"
        )
    return (1 - (_unit(features) * _unit(old_features)).sum(-1)).mean()


def margin_ranking_loss(
    similarities: Tensor, labels: Tensor, old_classes: Tensor, new_classes: Tensor, margin: float = 0.5, k: int = 2
) -> Tensor:
    r"""Samples of old classes stay nearer to their class than to the new ones nearest to them.

    .. math:: L_{mr} = \frac{1}{|N_o|} \sum_{x \in N_o} \sum_{k=1}^K
        \max(m - \langle \bar\theta(x), \bar f(x) \rangle + \langle \bar\theta^k, \bar f(x) \rangle, 0)

    (Hou et al. 2019, CVPR, eq. 8 and 9.) :math:`N_o` are the samples of old classes in the batch, and the K negatives
    are the new classes that are most similar to the sample; the authors' code takes the mean over K where the paper
    has the sum.

    Args:
        similarities: Cosine similarities ``(N, C)`` to all classes.
        labels: ``(N,)``, rows of the head.
        old_classes: Rows of the old classes, ``(O,)``.
        new_classes: Rows of the new classes, ``(M,)``; all of them are used if M < K.
        margin: m.
        k: K.

    Returns:
        A scalar, 0 without samples of old classes; at least fp32.

    Example:
        >>> similarities = torch.tensor([[0.6, 0.5, 0.1]])
        >>> rows = torch.arange(3)
        >>> margin_ranking_loss(similarities, torch.tensor([0]), rows[:1], rows[1:], margin=0.2, k=1)
        tensor(0.1000)
    """
    old = torch.isin(labels, old_classes)
    wide = similarities[old].float() if similarities.dtype.itemsize < 4 else similarities[old]
    own = wide.gather(1, labels[old, None])
    hardest = wide[:, new_classes].topk(min(k, len(new_classes)), dim=1).values
    return (margin - own + hardest).clamp(min=0).sum() / max(1, len(own))


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float() if features.dtype.itemsize < 4 else features, dim=-1)
