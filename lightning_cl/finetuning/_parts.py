"""What a module is made of if nothing else is given, and of what is given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.backbones import backbone_from_spec
from lightning_cl.finetuning.cosine_head import CosineHead
from lightning_cl.finetuning.head import ClassifierHead
from lightning_cl.finetuning.task_heads import TaskHeads


def make_backbone(backbone: Any, input_shape: Sequence[int] | None) -> nn.Module:
    """The backbone from a module, what builds it, or what a checkpoint holds."""
    if isinstance(backbone, dict):
        return backbone_from_spec(backbone)
    if isinstance(backbone, nn.Module):
        return backbone
    if not callable(backbone):
        raise InputError(
            f"backbone={backbone!r}",
            "a module; a checkpoint holds only backbones of lightning_cl.finetuning",
            "pass your own again: load_from_checkpoint(path, backbone=MyBackbone())",
        )
    return backbone(input_shape)


def head_class(head: str, layer: str, options: dict[str, Any]) -> Any:
    """Class of the head of a kind.

    Raises:
        InputError: For a kind, a layer or options that are not known or do not fit.
    """
    if head not in ("growing", "multi", "separate", "fixed"):
        raise InputError(f"head={head!r}", "'growing', 'multi', 'separate' or 'fixed'", "leave it out for 'growing'")
    if layer not in ("linear", "cosine"):
        raise InputError(f"head_layer={layer!r}", "'linear' or 'cosine'", "leave it out for 'linear'")
    if layer == "linear":
        if options:
            raise InputError(f"head_options={options!r} with head_layer='linear'", "none", "set head_layer='cosine'")
        return TaskHeads if head == "separate" else ClassifierHead
    unknown = sorted(options.keys() - {"proxies", "eta", "imprint"})
    if unknown:
        raise InputError(f"head_options {unknown}", "proxies, eta, imprint", "leave the others out")
    if head == "separate":
        raise InputError(
            "head='separate' with head_layer='cosine'",
            "one head for all tasks",
            "use head='multi', or head_layer='linear'",
        )
    return CosineHead


def adam(params: Any) -> torch.optim.Optimizer:
    """Adam with lr 1e-3."""
    return torch.optim.Adam(params, lr=1e-3)


def micro_accuracy(num_classes: int) -> Any:
    """Share of the samples that are right."""
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy(num_classes=max(num_classes, 2), average="micro", validate_args=False)


def feature_dim(backbone: nn.Module, input_shape: Sequence[int] | None) -> int:
    """The width d of a backbone's features (N, d), measured if it does not say."""
    given: Any = getattr(backbone, "feature_dim", None)
    if given is not None:
        return int(given)
    if input_shape is None:
        raise InputError("a backbone without feature_dim", "input_shape=(...) to measure it", "pass input_shape")
    was_training = backbone.training
    with torch.no_grad():
        features = backbone.eval()(torch.zeros(1, *input_shape))
    backbone.train(was_training)
    if not isinstance(features, Tensor) or features.dim() != 2:
        found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise InputError(f"backbone output {found!r}", "features of shape (N, d)", "flatten them in forward")
    return features.shape[1]
