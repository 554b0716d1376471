"""What a module is made of if nothing else is given, and of what is given."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.backbones import backbone_from_spec
from lightning_cl.finetuning.new_head import HEADS
from lightning_cl.finetuning.task_heads import TaskHeads

#: options of each kind of layer
LAYERS = {"linear": (), "mlp": ("hidden", "dropout"), "cosine": ("proxies", "eta", "imprint")}


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
    if layer not in LAYERS:
        expected = "'linear', 'mlp' or 'cosine'"
        raise InputError(f"head_layer={layer!r}", expected, "leave it out for 'linear'")
    known = LAYERS[layer]
    if options and not known:
        hint = "set head_layer='cosine' or 'mlp'"
        raise InputError(f"head_options={options!r} with head_layer='linear'", "none", hint)
    if unknown := sorted(options.keys() - set(known)):
        raise InputError(f"head_options {unknown}", ", ".join(known), "leave the others out")
    if head == "separate" and layer != "linear":
        raise InputError(
            f"head='separate' with head_layer={layer!r}",
            "one head for all tasks",
            "use head='multi', or head_layer='linear'",
        )
    return TaskHeads if head == "separate" else HEADS[layer]


def adam(params: Any, lr: float = 1e-3) -> torch.optim.Optimizer:
    """Adam."""
    return torch.optim.Adam(params, lr=lr)


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
