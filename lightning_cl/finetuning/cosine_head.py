"""A classifier that compares directions: cosine similarities of features and class vectors."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from lightning_cl.errors import InputError
from lightning_cl.functional.imprinting import imprinted_rows
from lightning_cl.functional.seeding import derive_seed, generator


class CosineHead(nn.Module):
    r"""One or several vectors (proxies) per class name; logits are scaled cosine similarities. It grows with classes.

    .. math:: z_c = \eta \sum_{k=1}^K s_{c,k} \langle \bar w_{c,k}, \bar f \rangle, \qquad
        s_{c,k} = \frac{\exp\langle \bar w_{c,k}, \bar f \rangle}{\sum_i \exp\langle \bar w_{c,i}, \bar f \rangle}

    with L2-normalised vectors and features, and a learnable :math:`\eta`. One proxy per class is the classifier of
    LUCIR (Hou et al. 2019, CVPR), several are the local similarity classifier of PODNet (Douillard et al. 2020,
    arXiv:2004.13513). New rows are drawn from U(-1/sqrt(d), 1/sqrt(d)) by a generator of (seed, class name), as those
    of :class:`~lightning_cl.finetuning.ClassifierHead`. There is no bias.

    State: ``weight`` (C, K, d) and ``eta`` (1,).

    Args:
        in_features: Width d of the features.
        class_names: Classes of the first rows.
        seed: Seed of the rows.
        proxies: Vectors per class, K.
        eta: Scale of the logits at the start. With a small one the softmax is nearly uniform, and the many samples of
            new classes push the few of old ones away wherever they are: from 1, where the papers' SGD starts, Adam does
            not get far enough in a short task (digits, 5 tasks, 40 epochs: 69 % from 1, 99 % from 10, LUCIR).
        imprint: Whether rows of classes that come after the first task start where their features lie;
            :class:`~lightning_cl.finetuning.FineTuningModule` reads this and does it before the fit.

    Raises:
        InputError: If ``proxies < 1`` or ``eta`` is not a finite number > 0.

    Example:
        >>> head = CosineHead(2, ["a", "b"])
        >>> _ = head.weight.data.copy_(torch.tensor([[[2.0, 0.0]], [[0.0, 3.0]]]))
        >>> head.similarities(torch.tensor([[5.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """

    def __init__(
        self,
        in_features: int,
        class_names: Sequence[str] = (),
        seed: int = 0,
        *,
        proxies: int = 1,
        eta: float = 10.0,
        imprint: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(proxies, int) or isinstance(proxies, bool) or proxies < 1:
            raise InputError(f"proxies={proxies!r}", "an integer >= 1", "1 for LUCIR, 10 for PODNet")
        if not isinstance(eta, int | float) or not 0 < eta < math.inf:
            raise InputError(f"eta={eta!r}", "a finite number > 0", "leave it out for 10.0")
        self.in_features, self.seed, self.proxies, self.imprint = in_features, seed, proxies, imprint
        self.class_names: list[str] = []
        self.weight = nn.Parameter(torch.empty(0, proxies, in_features))
        self.eta = nn.Parameter(torch.full((1,), float(eta)))
        self.add_classes(class_names)

    @property
    def out_features(self) -> int:
        """Classes, C."""
        return len(self.class_names)

    def add_classes(self, class_names: Sequence[str]) -> int:
        """Append rows for the names that are new; returns how many there were."""
        new = [name for name in dict.fromkeys(class_names) if name not in self.class_names]
        if not new:
            return 0
        bound, shape = 1 / math.sqrt(self.in_features), (self.proxies, self.in_features)
        rows = [
            torch.empty(shape).uniform_(-bound, bound, generator=generator(self.seed, "cosine head", name))
            for name in new
        ]
        old = self.weight
        grown = torch.cat([old.detach(), torch.stack(rows).to(old)])
        self.weight = nn.Parameter(grown, requires_grad=old.requires_grad)
        self.class_names += new
        return len(new)

    def similarities(self, features: Tensor) -> Tensor:
        """Cosine similarities (N, C) of features (N, d), in [-1, 1]; of several proxies the softmax-weighted sum."""
        directions = normalize(self.weight.flatten(0, 1), dim=-1)
        each = (normalize(features, dim=-1) @ directions.T).unflatten(-1, (-1, self.proxies))
        return each.squeeze(-1) if self.proxies == 1 else (each.softmax(-1) * each).sum(-1)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (N, C) of features (N, d)."""
        return self.eta * self.similarities(features)

    @torch.no_grad()
    def imprint_rows(self, features: dict[str, Tensor]) -> None:
        """Put the rows of some classes where their features lie, as long as the other classes' rows are on average.

        Args:
            features: Features (M, d) of each of the classes, any M >= 1.
        """
        rows = [self.class_names.index(name) for name in features]
        others = [row for row in range(self.out_features) if row not in rows]
        length: Any = self.weight[others or rows].norm(dim=-1).mean()
        for row, (name, of_class) in zip(rows, features.items(), strict=True):
            seed = derive_seed(self.seed, "imprint", name)
            self.weight[row] = length * normalize(imprinted_rows(of_class, self.proxies, seed), dim=-1).to(self.weight)
