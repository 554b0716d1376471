"""Which classes a batch may push on: asymmetric cross-entropy."""

import torch
from torch import Tensor


def present_classes(labels: Tensor, n_classes: int) -> Tensor:
    """True for the classes that occur among the labels, ``(n_classes,)``; negative labels (padding) are none.

    Masking all others out of the loss of new samples (:func:`~lightning_cl.functional.mask_logits`) is the asymmetric
    cross-entropy of Caccia et al. 2022, arXiv:2104.05025: new samples do not push on the logits of old classes.

    Args:
        labels: Integers below ``n_classes``, any shape.
        n_classes: Number of logits.

    Example:
        >>> present_classes(torch.tensor([2, 0, 2]), 4)
        tensor([ True, False,  True, False])
    """
    # by comparison, not by indexing with a mask: no synchronization with the device
    columns = torch.arange(n_classes, device=labels.device)
    return (labels.reshape(-1, 1) == columns).any(0)
