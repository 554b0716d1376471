"""A classifier with a layer of its own for each task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_cl.finetuning.head import ClassifierHead


class TaskHeads(nn.Module):
    """Classes that arrive together get a Linear layer of their own; the logits stand side by side.

    The same function and the same initial rows as one :class:`~lightning_cl.finetuning.ClassifierHead` with all
    classes, but a new task's parameters are new tensors: an optimizer whose state is kept over tasks (Adam's count of
    steps) begins anew for them, as in protocols that build one head per task.

    Args:
        in_features: Width d of the features.
        class_names: Classes of the first layer.
        seed: Seed of the rows.
    """

    def __init__(self, in_features: int, class_names: Sequence[str] = (), seed: int = 0) -> None:
        super().__init__()
        self.in_features, self.seed = in_features, seed
        self.layers = nn.ModuleList()
        self.class_names: list[str] = []
        self.add_classes(class_names)

    def add_classes(self, class_names: Sequence[str]) -> int:
        """Append a layer for the names that are new; returns how many there were."""
        new = [name for name in dict.fromkeys(class_names) if name not in self.class_names]
        if new:
            layer = ClassifierHead(self.in_features, new, self.seed)
            like = next(self.parameters(), layer.weight)
            self.layers.append(layer.to(like).requires_grad_(like.requires_grad))
            self.class_names += new
        return len(new)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, C) of features (N, d)."""
        return torch.cat([layer(x) for layer in self.layers], dim=-1)
