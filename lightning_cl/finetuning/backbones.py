"""The backbones that a checkpoint may name."""

from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.mlp import MLP
from lightning_cl.finetuning.torchvision_backbone import TorchvisionBackbone

BACKBONES: dict[str, Any] = {"mlp": MLP, "torchvision": TorchvisionBackbone}


def backbone_from_spec(spec: dict[str, Any]) -> nn.Module:
    """Build one of our own backbones from the plain values in a checkpoint; nothing else can be named there."""
    name = spec.get("name")
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} in the checkpoint", f"one of {', '.join(BACKBONES)}", "pass backbone=...")
    return BACKBONES[name](**{key: value for key, value in spec.items() if key != "name"})
