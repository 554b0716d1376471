"""The losses of PODNet: distillation of pooled outputs, and a classification loss with a margin."""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def pooled_outputs(outputs: Tensor) -> Tensor:
    r"""A stage's outputs with space summed away in one direction at a time, per sample of length 1.

    Maps ``(N, C, H, W)`` are squared, summed over the width, ``(N, C H)``, and over the height, ``(N, C W)``, put side
    by side and L2-normalised (POD-spatial, Douillard et al. 2020, arXiv:2004.13513, with the squares of the authors'
    code). Anything else is flattened and L2-normalised (POD-flat).

    Args:
        outputs: ``(N, C, H, W)`` or ``(N, ...)``.

    Returns:
        ``(N, p)``, at least fp32.

    Example:
        >>> (pooled_outputs(torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])) * 6**0.5).round().tolist()
        [[2.0, 0.0, 1.0, 1.0]]
    """
    wide = outputs.float() if outputs.dtype.itemsize < 4 else outputs
    if wide.ndim == 4:
        squares = wide.square()
        wide = torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], dim=1)
    return normalize(wide.flatten(1), dim=1)


def pooled_distance(outputs: Tensor, old_outputs: Tensor) -> Tensor:
    r"""Distance between a stage's pooled outputs and the old model's, the mean over samples.

    .. math:: \frac1N \sum_i \lVert p_i - p_i^{old} \rVert_2

    with :func:`pooled_outputs` p. The distance is not squared, as in the authors' code (the paper's formula has
    squares), because published weights belong to it.

    Args:
        outputs: ``(N, C, H, W)`` or ``(N, ...)``.
        old_outputs: Of the same shape.

    Example:
        >>> pooled_distance(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        tensor(1.4142)
    """
    if outputs.shape != old_outputs.shape:
        raise ValueError(
            f"outputs {tuple(outputs.shape)} and old_outputs {tuple(old_outputs.shape)}; expected equal shapes. "
            "HINT: both of the same stage and batch"
        )
    return torch.linalg.vector_norm(pooled_outputs(outputs) - pooled_outputs(old_outputs), dim=1).mean()


def nca_loss(similarities: Tensor, labels: Tensor, scale: Tensor | float = 1.0, margin: Tensor | float = 0.6) -> Tensor:
    r"""Neighbourhood component analysis against class vectors, with a margin and a hinge; the mean over samples.

    .. math:: \Big[ -\log \frac{\exp(\eta (\hat y_y - \delta))}{\sum_{i \ne y} \exp(\eta \hat y_i)} \Big]_+

    (Douillard et al. 2020, eq. 7.) Other than in cross entropy the true class is not in the denominator, so that a
    sample that is far enough on the right side has no loss.

    Args:
        similarities: :math:`\hat y`, ``(N, C)``, C >= 2; classes that do not count as the inactive value of
            :func:`~lightning_cl.functional.masking.mask_logits`.
        labels: ``(N,)``.
        scale: :math:`\eta`. For logits, which are scaled already: 1, and :math:`\eta \delta` as the margin.
        margin: :math:`\delta`.

    Returns:
        A scalar, at least fp32.

    Example:
        >>> nca_loss(torch.tensor([[0.5, 0.2]]), torch.tensor([0]), scale=2.0, margin=0.6)
        tensor(0.6000)
    """
    wide = similarities.float() if similarities.dtype.itemsize < 4 else similarities
    own = wide.gather(1, labels[:, None]).squeeze(1)
    others = (scale * wide).scatter(1, labels[:, None], -torch.inf)
    return (torch.logsumexp(others, dim=1) - scale * (own - margin)).clamp(min=0).mean()
