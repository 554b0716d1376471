"""The bias correction for prediction."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BiasCorrection(nn.Module):
    r"""Predicts by logits that are scaled and shifted, the same for all rows of a group (Wu et al. 2019,
    arXiv:1905.13260):

    .. math:: q_k = \alpha_g o_k + \beta_g \quad \text{for row } k \text{ of group } g

    State: ``scale`` and ``shift``, (C,) each, buffers; 1 and 0 for rows that no group has been given.

    Args:
        features: Not used; rules are built alike.
        rows: Rows C of the head.
    """

    #: its scores are logits
    corrects_logits = True
    scale: Tensor
    shift: Tensor

    def __init__(self, features: int, rows: int = 0) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(rows))
        self.register_buffer("shift", torch.zeros(rows))

    def resize(self, rows: int) -> None:
        """Have as many rows as the head; new ones are not corrected."""
        new = max(0, rows - len(self.scale))
        self.scale = torch.cat([self.scale[:rows], self.scale.new_ones(new)])
        self.shift = torch.cat([self.shift[:rows], self.shift.new_zeros(new)])

    @torch.no_grad()
    def correct(self, rows: Sequence[int], scale: float, shift: float) -> None:
        """Set a group's two parameters."""
        self.scale[list(rows)], self.shift[list(rows)] = scale, shift

    @torch.no_grad()
    def reset(self) -> None:
        """Correct no row."""
        self.scale.fill_(1)
        self.shift.fill_(0)

    def covers(self, active: Tensor) -> bool:
        """True: what has no correction is left as it is."""
        return True

    def forward(self, logits: Tensor, features: Tensor | None = None) -> Tensor:
        """Corrected logits (N, C)."""
        return logits * self.scale + self.shift
