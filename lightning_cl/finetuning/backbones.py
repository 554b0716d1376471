"""The backbones that a checkpoint may name."""

import importlib
from typing import Any

from torch import nn

from lightning_cl.errors import InputError

#: name in a checkpoint -> (module, class); imported when it is used
BACKBONES = {
    "mlp": ("mlp", "MLP"),
    "torchvision": ("torchvision_backbone", "TorchvisionBackbone"),
    "timm": ("timm_backbone", "TimmBackbone"),
    "hf_image": ("hf_backbone", "HFImageBackbone"),
    "hf_text": ("hf_text_backbone", "HFTextBackbone"),
}


def backbone_from_spec(spec: dict[str, Any]) -> nn.Module:
    """Build one of our own backbones from the plain values in a checkpoint; nothing else can be named there."""
    name = spec.get("name")
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} in the checkpoint", f"one of {', '.join(BACKBONES)}", "pass backbone=...")
    module, kind = BACKBONES[name]
    build = getattr(importlib.import_module(f"lightning_cl.finetuning.{module}"), kind)
    return build(**{key: value for key, value in spec.items() if key != "name"})
