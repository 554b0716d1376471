"""A classifier with a hidden layer under its rows."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.head import ClassifierHead
from lightning_cl.functional.seeding import generator


class MLPHead(nn.Module):
    r"""A hidden layer, shared by all classes, and one row per class name on top of it; it grows with classes.

    .. math:: z = W \, \mathrm{dropout}(\max(0, V f + a)) + b

    V and a are drawn like ``nn.Linear``'s by a generator of (seed, width), the rows of W and b as those of
    :class:`~lightning_cl.finetuning.ClassifierHead`, so neither depends on when a class arrives.

    State: ``hidden.weight`` (H, d), ``hidden.bias`` (H,), ``rows.weight`` (C, H), ``rows.bias`` (C,).

    Args:
        in_features: Width d of the features.
        class_names: Classes of the first rows.
        seed: Seed of the weights.
        hidden: Width H of the hidden layer.
        dropout: Share of the hidden units that is left out in training.

    Raises:
        InputError: If ``hidden < 1`` or ``dropout`` is not in [0, 1).

    Example:
        >>> MLPHead(4, ["a", "b"], hidden=8)(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        in_features: int,
        class_names: Sequence[str] = (),
        seed: int = 0,
        *,
        hidden: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(hidden, int) or isinstance(hidden, bool) or hidden < 1:
            raise InputError(f"hidden={hidden!r}", "an integer >= 1", "leave it out for 256")
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise InputError(f"dropout={dropout!r}", "a number in [0, 1)", "leave it out for 0")
        self.in_features, self.seed = in_features, seed
        self.hidden = nn.utils.skip_init(nn.Linear, in_features, hidden)
        bound, source = 1 / math.sqrt(in_features), generator(seed, "mlp head", hidden)
        for parameter in self.hidden.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=source)
        self.dropout = nn.Dropout(dropout)
        self.rows = ClassifierHead(hidden, class_names, seed)

    @property
    def class_names(self) -> list[str]:
        """Names of the rows."""
        return self.rows.class_names

    @property
    def out_features(self) -> int:
        """Classes, C."""
        return self.rows.out_features

    @property
    def weight(self) -> Any:
        """The rows (C, H), in which all classes compete."""
        return self.rows.weight

    @property
    def bias(self) -> Any:
        """The rows' bias (C,)."""
        return self.rows.bias

    def add_classes(self, class_names: Sequence[str]) -> int:
        """Append rows for the names that are new; returns how many there were."""
        return self.rows.add_classes(class_names)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, d)."""
        return self.rows(self.dropout(torch.relu(self.hidden(features))))
