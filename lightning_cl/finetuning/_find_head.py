"""Where a model's classifier is."""

from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.cosine_head import CosineHead
from lightning_cl.finetuning.head import ClassifierHead
from lightning_cl.finetuning.mlp_head import MLPHead

#: parts of an HF model that stand between the network and its classifier
_NO_CLASSIFIER = ("pooler", "pre_classifier", "sequence_summary")


def find_heads(model: nn.Module, name: str | None = None) -> list[str]:
    """Names of the layers that give a model's logits: the main one first, then auxiliary ones.

    Args:
        model: A torchvision, timm or HF classification model, one module around it, or any other module.
        name: The layer, for other modules that have more than one Linear layer.

    Raises:
        InputError: If the model does not tell which layer it is; the message names the Linear layers there are.
    """
    parts = dict(model.named_modules())
    if name is not None:
        if name in parts and name and is_head(parts[name]):
            return [name]
        raise InputError(
            f"name={name!r}, which is no classifier layer", _layers(parts), "give the name of one of these"
        )
    found = _of_library(parts)
    if found is None:
        found = _alone(parts, (ClassifierHead, CosineHead, MLPHead)) or _alone(parts, (nn.Linear,))
    if not found:
        raise InputError(
            f"{type(model).__name__}, which does not tell which layer is its classifier",
            f"the name of one of its layers: {_layers(parts)}",
            "pass name='...'; a model that is one layer cannot be changed in place",
        )
    return found


def is_head(part: Any) -> bool:
    """Whether a layer can be a classifier: Linear, a 1x1 convolution, or one of our heads."""
    if isinstance(part, nn.Conv2d):
        return part.kernel_size == (1, 1) and part.groups == 1
    return isinstance(part, nn.Linear | CosineHead | MLPHead)


def rows_of(part: Any) -> int:
    """How many classes a classifier layer has."""
    return part.out_channels if isinstance(part, nn.Conv2d) else part.out_features


def is_hf(model: Any) -> bool:
    """Whether a module is an HF model."""
    return isinstance(model, nn.Module) and hasattr(model, "base_model_prefix") and hasattr(model, "config")


def is_timm(model: Any) -> bool:
    """Whether a module is a timm model."""
    return isinstance(model, nn.Module) and hasattr(model, "get_classifier") and hasattr(model, "pretrained_cfg")


def _of_library(parts: dict[str, nn.Module]) -> list[str] | None:
    """The classifier of the one library model there is, if no Linear layer stands outside it; None without one."""
    for rule in (_timm, _hf, _torchvision):
        for name, part in parts.items():
            found = rule(part)
            if found == [] and not name:
                return []  # built without one, so that no other Linear layer is to be taken for it
            if found:
                start = f"{name}." if name else ""
                outside = [n for n, p in parts.items() if isinstance(p, nn.Linear) and not n.startswith(start)]
                return [] if outside else [start + each for each in found]
    return None


def _timm(model: Any) -> list[str] | None:
    if not is_timm(model):
        return None
    parts = dict(model.named_modules())
    names = dict(model.pretrained_cfg or {}).get("classifier") or ()
    found = [name for name in ([names] if isinstance(names, str) else names) if is_head(parts.get(name))]
    if not found:
        found = [name for name, part in parts.items() if name and part is model.get_classifier() and is_head(part)]
    return found


def _hf(model: Any) -> list[str] | None:
    if not is_hf(model):
        return None
    found = []
    for name, part in model.named_children():
        if is_timm(part):
            found += [f"{name}.{each}" for each in _timm(part) or ()]
        elif name != model.base_model_prefix and name not in _NO_CLASSIFIER:
            last = _last(part, name)
            if last and rows_of(model.get_submodule(last)) == model.config.num_labels:
                found.append(last)
    return found


def _torchvision(model: Any) -> list[str] | None:
    if not any(kind.__module__.startswith("torchvision.models") for kind in type(model).__mro__):
        return None
    tops = ("fc", "classifier", "heads", "head")
    found = [last for top in tops if hasattr(model, top) and (last := _last(getattr(model, top), top))]
    if not found and type(model).__name__ == "SqueezeNet":
        found = ["classifier.1"]
    for name in ("AuxLogits.fc", "aux1.fc2", "aux2.fc2"):
        top, _, layer = name.partition(".")
        if found and is_head(getattr(getattr(model, top, None), layer, None)):
            found.append(name)
    return found


def _last(part: nn.Module, name: str) -> str | None:
    """The layer that computes last in a part whose children follow one another, if it can be a classifier."""
    while not is_head(part):
        children = list(part.named_children())
        if not children:
            return None
        name, part = f"{name}.{children[-1][0]}", children[-1][1]
    return name


def _alone(parts: dict[str, nn.Module], kinds: tuple[type, ...]) -> list[str]:
    """The only layer of a kind, those inside another of that kind not counted."""
    names: list[str] = []
    for name, part in parts.items():
        if name and isinstance(part, kinds) and not any(name.startswith(f"{outer}.") for outer in names):
            names.append(name)
    return names if len(names) == 1 else []


def _layers(parts: dict[str, nn.Module]) -> str:
    """The Linear layers there are, the last ones of many."""
    linear = [
        f"{name!r} ({part.in_features} -> {part.out_features})"
        for name, part in parts.items()
        if name and isinstance(part, nn.Linear)
    ]
    if not linear:
        return "none is Linear"
    return ", ".join(([f"{len(linear) - 8} others", *linear[-8:]]) if len(linear) > 8 else linear)
