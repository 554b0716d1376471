"""A linear classifier whose rows are class names."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_cl.functional.seeding import generator


class ClassifierHead(nn.Linear):
    """A Linear layer with one row per class name; it gains rows when classes are added.

    New rows are drawn like ``nn.Linear``'s, U(-1/sqrt(d), 1/sqrt(d)), from a generator of (seed, class name), so they
    do not depend on when a class arrives. Rows of known classes keep their values.

    Args:
        in_features: Width d of the features.
        class_names: Classes of the first rows.
        seed: Seed of the rows.
        bias: Whether there is a bias; the weights do not depend on it.
    """

    def __init__(self, in_features: int, class_names: Sequence[str] = (), seed: int = 0, *, bias: bool = True) -> None:
        super().__init__(in_features, 0, bias)
        self.seed = seed
        self.class_names: list[str] = []
        self.add_classes(class_names)

    def reset_parameters(self) -> None:
        """Nothing: rows are drawn when classes are added, from their own generator."""

    def add_classes(self, class_names: Sequence[str]) -> int:
        """Append rows for the names that are new; returns how many there were."""
        new = [name for name in dict.fromkeys(class_names) if name not in self.class_names]
        if not new:
            return 0
        block = self._rows(new, self.seed)
        for name, rows_of in (("weight", block[:, :-1]), ("bias", block[:, -1])):
            old = getattr(self, name)
            if old is None:
                continue
            setattr(self, name, nn.Parameter(torch.cat([old.detach(), rows_of]), requires_grad=old.requires_grad))
        self.class_names += new
        self.out_features = len(self.class_names)
        return len(new)

    @torch.no_grad()
    def redraw(self, seed: int) -> None:
        """Draw every row anew, from generators of (seed, class name)."""
        if self.class_names:
            block = self._rows(self.class_names, seed)
            self.weight.copy_(block[:, :-1])
            if self.bias is not None:
                self.bias.copy_(block[:, -1])

    def _rows(self, names: Sequence[str], seed: int) -> Tensor:
        bound = 1 / math.sqrt(self.in_features)
        rows = [
            torch.empty(self.in_features + 1).uniform_(-bound, bound, generator=generator(seed, "head", name))
            for name in names
        ]
        return torch.stack(rows).to(self.weight)
