"""The distillation loss of EEIL: one soft cross entropy for the classes of each old task."""

from collections.abc import Sequence

import torch
from torch import Tensor


def cross_distillation_loss(
    logits: Tensor, old_logits: Tensor, tasks: Sequence[Sequence[int]], temperature: float = 2.0
) -> Tensor:
    r"""The sum over tasks of the cross entropy between softened outputs of old and new model on the task's classes.

    .. math:: \sum_{f} -\frac1N \sum_{i=1}^N \sum_{c \in C_f} p^{old}_{f,ic} \log p_{f,ic}, \qquad
        p_{f,i} = \mathrm{softmax}(z_{i, C_f} / T)

    (Castro et al. 2018, ECCV, eq. 1 to 3.) There is no factor of :math:`T^2`.

    Args:
        logits: ``(N, C)``.
        old_logits: ``(N, C)`` or fewer columns, of the old model; only the tasks' columns are read.
        tasks: Columns of each task, :math:`C_f`.
        temperature: T.

    Returns:
        A scalar, 0 without tasks; at least fp32.

    Example:
        >>> z = torch.tensor([[0.0, 0.0, 5.0]])
        >>> cross_distillation_loss(z, z, [[0, 1]])
        tensor(0.6931)
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature!r}; expected a number > 0. HINT: 2.0 is the paper's")
    logits, old_logits = (z.float() if z.dtype.itemsize < 4 else z for z in (logits, old_logits))
    terms = []
    for task in tasks:
        columns = torch.as_tensor(task, device=logits.device)
        old = (old_logits[:, columns] / temperature).softmax(1)
        terms.append(-(old * (logits[:, columns] / temperature).log_softmax(1)).sum(1).mean())
    return torch.stack(terms).sum() if terms else logits.sum() * 0
