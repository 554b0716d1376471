"""Logits of inactive classes taken out of the softmax."""

import torch
from torch import Tensor


def mask_logits(logits: Tensor, active: Tensor) -> Tensor:
    r"""Logits in which inactive classes can no longer win, lose or learn.

    .. math:: z'_c = z_c \text{ if } c \text{ is active, else } m

    with ``m`` = -1e30 (in fp16 its lowest number, -65504). It is finite, so that neither a loss nor a gradient becomes
    NaN (``-inf`` gives ``0 * inf`` in some losses); the softmax of an inactive class is exactly 0 and no gradient goes
    through it. A sample whose classes are all inactive gets a uniform softmax, not NaN.

    With label smoothing, ``cross_entropy`` spreads a part of the target over *all* columns: the loss then holds a
    huge constant and pulls the active logits together more than asked. It stays finite, and so does its gradient,
    except that the value of the loss (not the gradient) is ``inf`` when the loss itself is computed in fp16; under
    autocast it is computed in fp32. Smooth over the active columns only if the value of the loss matters.

    Args:
        logits: ``(N, C)``, or ``(..., C)`` with a mask of shape ``(C,)``; fp16, bf16, fp32 or fp64.
        active: Boolean, ``(C,)`` or the shape of ``logits``; True where the class may be predicted.

    Raises:
        ValueError: if ``active`` is not boolean or does not fit the logits.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 1.0]])
        >>> mask_logits(logits, torch.tensor([True, False, True])).softmax(dim=1)
        tensor([[0.5000, 0.0000, 0.5000]])
    """
    if active.dtype != torch.bool:
        raise ValueError(f"active.dtype={active.dtype}; expected torch.bool. HINT: pass `mask.bool()`")
    if active.shape != logits.shape and active.shape != logits.shape[-1:]:
        raise ValueError(
            f"active.shape={tuple(active.shape)}; expected ({logits.shape[-1]},) or {tuple(logits.shape)}, the logits' "
            "shape. HINT: give one boolean per class, or one per sample and class"
        )
    return logits.masked_fill(~active, inactive_value(logits.dtype))


def inactive_value(dtype: torch.dtype) -> float:
    """The finite number that :func:`mask_logits` writes.

    Far below any logit, and far enough from the lowest number that sums over classes and samples do not overflow;
    fp16 has no room for both.
    """
    return max(-1e30, torch.finfo(dtype).min)
