"""Classification by independent yes-or-no outputs, in which old classes ask an earlier model."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def binary_distillation_loss(
    logits: Tensor,
    labels: Tensor,
    old_logits: Tensor | None = None,
    old: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    r"""Binary cross-entropy of every class: labels for the new classes, an earlier model's outputs for the old ones.

    .. math:: L = \frac{1}{N}\sum_n \sum_c \mathrm{BCE}(\sigma(z_{nc}), t_{nc}), \qquad
        t_{nc} = \sigma(z^{old}_{nc} / T) \text{ for an old class, else } [y_n = c]

    Rebuffi et al. 2017, arXiv:1611.07725, algorithm 3, with T = 1; van de Ven et al. 2022 use T = 2. Computed in fp32
    for half-precision logits; a masked logit (-1e30) of a class that is not the label adds nothing.

    Args:
        logits: z, (N, C).
        labels: y, (N,) long.
        old_logits: Of the earlier model, (N, K), in the order of ``old``; None if there is none.
        old: Indices of the old classes, (K,) long.
        temperature: T > 0, of the targets only.

    Returns:
        The sum over classes, averaged over samples, a scalar.

    Example:
        >>> binary_distillation_loss(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        tensor(1.3863)
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    targets = torch.zeros_like(logits, dtype=wide)
    targets.scatter_(1, labels[:, None], 1.0)
    if old_logits is not None and old is not None:
        targets[:, old] = (old_logits.detach().to(wide) / temperature).sigmoid()
    return binary_cross_entropy_with_logits(logits.to(wide), targets, reduction="none").sum(1).mean()
