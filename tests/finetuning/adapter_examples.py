"""Small models of four libraries, each with what it computes on, for the tests of adapters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl._compat import seeded

pytest.importorskip("peft")

IMAGES = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TOKENS = {"input_ids": torch.randint(3, 50, (6, 7), generator=torch.Generator().manual_seed(0))}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CLASSES = 3


def hf_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig(**SMALL, vocab_size=50, num_labels=CLASSES))


def hf_distilbert() -> nn.Module:
    from transformers import DistilBertConfig
    from transformers import DistilBertForSequenceClassification as Model

    return Model(DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=50, num_labels=CLASSES))


def hf_vit() -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(**SMALL, image_size=16, patch_size=8, num_labels=CLASSES))


def timm_vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=8, depth=2, num_classes=CLASSES)


def resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES)


def torchvision_swin() -> nn.Module:
    from torchvision.models import SwinTransformer

    return SwinTransformer([4, 4], 16, [1, 1], [2, 2], [2, 2], num_classes=CLASSES)


MODELS: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (hf_bert, hf_distilbert, hf_vit, timm_vit, resnet18, torchvision_swin)
}


def make(name: str) -> nn.Module:
    """The same at every call."""
    with seeded(0):
        return MODELS[name]().eval()


def logits(model: nn.Module) -> Tensor:
    output: Any = model(**TOKENS) if type(model).__name__.startswith(("Bert", "Distil")) else model(IMAGES)
    return getattr(output, "logits", output)


def train(model: nn.Module, steps: int = 3) -> nn.Module:
    """A few steps of Adam over all parameters, as a user's ``configure_optimizers`` has them; in eval mode after it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits(model), torch.arange(6) % CLASSES).backward()
        optimizer.step()
    return model.eval()


class ConvNet(nn.Module):
    """Convolutions, plain and grouped, BatchNorm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.grouped = nn.Conv2d(4, 4, 3, groups=4)
        self.plain_norm = nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(16, 8)
        self.out = nn.Linear(8, CLASSES)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += len(x)
        x = self.plain_norm(self.grouped(self.norm(self.conv(x)).relu()))
        return self.out(self.hidden(self.drop(self.pool(x)).flatten(1)).relu())


def conv_net() -> ConvNet:
    with seeded(1):
        return ConvNet().eval()
