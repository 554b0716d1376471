"""Losses between the logits of a model and logits that were given earlier."""

import torch
import torch.nn.functional as F
from torch import Tensor


def distillation_loss(
    logits: Tensor, targets: Tensor, temperature: float = 2.0, *, scale_by_T2: bool = False
) -> Tensor:
    r"""Cross-entropy between softened predictions of a teacher and those of a model: knowledge distillation.

    .. math:: L = -\frac{1}{N} \sum_n \sum_c p_{nc} \log q_{nc}, \quad
        p = \mathrm{softmax}(targets / T), \quad q = \mathrm{softmax}(logits / T)

    Hinton et al. 2015, arXiv:1503.02531; Li & Hoiem 2017, arXiv:1606.09282. It differs from the Kullback-Leibler
    divergence by the teacher's entropy, which has no gradient. Computed in fp32 for half-precision logits.

    Args:
        logits: Of the model, ``(N, C', ...)`` with ``C' >= C``.
        targets: Logits of the teacher, ``(N, C, ...)``; classes beyond C get the probability 0.
        temperature: T > 0.
        scale_by_T2: Multiply by :math:`T^2`, so that the size of the gradient does not depend on T.

    Returns:
        The mean over all but the classes' dimension, a scalar.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> distillation_loss(torch.zeros(3, 2), torch.zeros(3, 2))
        tensor(0.6931)
    """
    missing = logits.shape[1] - targets.shape[1] if logits.dim() == targets.dim() >= 2 else -1
    if missing < 0 or logits.shape[:1] + logits.shape[2:] != targets.shape[:1] + targets.shape[2:]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; expected (N, C', ...) and (N, C, ...) "
            "with C' >= C. HINT: give the logits of one batch, with the classes that the teacher knew first"
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    p = (targets.detach().to(wide) / temperature).softmax(1)
    log_q = (logits.to(wide) / temperature).log_softmax(1)
    loss = -(p * log_q.narrow(1, 0, targets.shape[1])).sum(1).mean()
    return loss * temperature**2 if scale_by_T2 else loss


def logit_mse(logits: Tensor, stored: Tensor, widths: Tensor, *, inactive: float = -6e4) -> Tensor:
    r"""Mean squared difference to stored logits, over the classes that each sample had when it was stored.

    .. math:: L = \frac{\sum_n \sum_{c < w_n} (z_{nc} - z'_{nc})^2}{\sum_n w_n}

    For samples of one width it is ``mse_loss`` over that width (Buzzega et al. 2020, arXiv:2004.07211). Logits below
    ``inactive`` stand for classes that were masked, then or now, and count for nothing. Computed in fp32 for half
    precision.

    Args:
        logits: ``(N, C', ...)`` with ``C' >= C``.
        stored: ``(N, C, ...)``; what stands beyond a sample's width is not read.
        widths: Classes of each sample when it was stored, ``(N,)`` long.
        inactive: See above.

    Raises:
        ValueError: If there are more stored logits than there are classes now.

    Example:
        >>> logit_mse(torch.ones(2, 3), torch.zeros(2, 2), torch.tensor([2, 1]))
        tensor(1.)
    """
    width = stored.shape[1]
    if logits.dim() != stored.dim() or logits.shape[0] != stored.shape[0] or logits.shape[1] < width:
        raise ValueError(
            f"logits {tuple(logits.shape)} for stored ones {tuple(stored.shape)}; expected at least as many classes "
            "now as then. HINT: a head may grow, not shrink; new classes stand behind"
        )
    wide = torch.promote_types(logits.dtype, torch.float32)
    now, then = logits.narrow(1, 0, width).to(wide), stored.to(wide)
    if logits.is_cpu and len(widths) and int(widths.min()) >= width:
        lowest = torch.minimum(now.detach().amin(), then.amin())
        if (
            float(lowest) > inactive
        ):  # nothing is left out; a quarter of the time. Elsewhere asking would wait for a GPU
            return F.mse_loss(now, then)
    counted = torch.arange(width, device=logits.device) < widths.to(logits.device)[:, None]
    counted = counted.reshape(*counted.shape, *[1] * (logits.dim() - 2)) & (now > inactive) & (then > inactive)
    # masked before squaring: an infinite difference would leave a NaN in the gradient
    difference = torch.where(counted, now - then, 0)
    return difference.square().sum() / counted.expand_as(difference).sum().clamp_min(1)
