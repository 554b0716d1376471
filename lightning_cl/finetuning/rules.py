"""Rules for prediction: what a module may go by other than the largest of its head's logits."""

from typing import Protocol

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.bias_correction import BiasCorrection
from lightning_cl.finetuning.nearest_mean import NearestMean


class PredictionRule(Protocol):
    """An ``nn.Module`` built by ``Rule(features=d, rows=C)``, whose state follows from its buffers alone.

    It sees evaluation and prediction only; the training loss goes by the logits. Inactive classes are masked behind it.
    """

    def resize(self, rows: int) -> None:
        """Have as many rows as the head."""

    def covers(self, active: Tensor) -> bool:
        """Whether the rule can tell the classes of ``active`` (C,) bool apart; if not, the logits decide."""

    def __call__(self, logits: Tensor, features: Tensor) -> Tensor:
        """Scores (N, C) from logits (N, C) and features (N, d)."""


#: what ``FineTuningModule.set_rule`` knows, and a checkpoint names
RULES: dict[str, type[nn.Module]] = {"nearest_mean": NearestMean, "bias_correction": BiasCorrection}


def make_rule(name: str, features: int, rows: int, like: Tensor) -> nn.Module:
    """A rule without state, on the device of ``like``.

    Raises:
        InputError: For a name that is not in ``RULES``.
    """
    if name not in RULES:
        raise InputError(f"rule {name!r}", f"one of {', '.join(sorted(RULES))}, or None", "rules stand in RULES")
    return RULES[name](features, rows).to(torch.device(like.device))
