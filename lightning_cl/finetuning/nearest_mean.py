"""The nearest-mean rule for prediction."""

import torch
from torch import Tensor, nn

from lightning_cl.functional.nearest_mean import has_mean, nearest_mean_scores


class NearestMean(nn.Module):
    """Predicts the class whose mean of normalised features is nearest (Rebuffi et al. 2017, arXiv:1611.07725).

    While a class that may be predicted has no mean (its task is being learnt) the logits decide.

    State: ``means``, (C, d), a buffer; a row is zero while its class has none.

    Args:
        features: Width d of the features.
        rows: Rows C of the head.
    """

    means: Tensor

    def __init__(self, features: int, rows: int = 0) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(rows, features))

    def resize(self, rows: int) -> None:
        """Have as many rows as the head; new ones have no mean."""
        new = self.means.new_zeros(max(0, rows - len(self.means)), self.means.shape[1])
        self.means = torch.cat([self.means[:rows], new])

    @torch.no_grad()
    def set_means(self, means: Tensor) -> None:
        """Take means (C', d) for the first C' <= C rows; rows of zeros are classes that have none."""
        self.means[: len(means)] = means.to(self.means)

    def covers(self, active: Tensor) -> bool:
        """Whether every class of ``active`` (C,) bool has a mean."""
        return bool(has_mean(self.means)[active].all())

    def forward(self, logits: Tensor, features: Tensor) -> Tensor:
        """Scores (N, C), the larger the nearer."""
        # in half precision two means are soon equally near
        with torch.autocast(features.device.type, enabled=False):
            return nearest_mean_scores(features.float(), self.means.float())
