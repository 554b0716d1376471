"""Architectures without weights and without memory, for what reads only the module tree."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def torchvision_model(name: str) -> nn.Module:
    import torchvision

    return on_meta(lambda: torchvision.models.get_model(name, weights=None))


def timm_model(name: str, **options: Any) -> nn.Module:
    timm = pytest.importorskip("timm")
    return on_meta(lambda: timm.create_model(name, pretrained=False, num_classes=5, **options))


def bert(layers: int = 12, kind: str = "Bert") -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=layers, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=50
    )
    return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def plain_mlp(depth: int = 3, width: int = 8) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


class Block(nn.Module):
    """A residual block."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(self.one(self.norm(x)).relu())


class Tokens(nn.Module):
    """A small transformer-like network whose parameters stand partly beside its modules."""

    def __init__(self, blocks: int = 3, width: int = 4, classes: int = 2) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.temperature = nn.Parameter(torch.ones(()))
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) + self.token[0]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)) * self.temperature


class Reversed(nn.Module):
    """Defined from output to input, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.d, self.c, self.b, self.a = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(6, 4)
        self.bias = nn.Parameter(torch.zeros(1, 6))

    def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.d(self.c(self.b(self.a(x + self.bias)))) * scale
