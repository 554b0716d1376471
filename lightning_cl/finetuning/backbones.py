"""Feature extractors: an MLP, or any torchvision classification model by name."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError


class MLP(nn.Module):
    """Flattens its input and applies Linear + ReLU layers; features are the last hidden layer.

    Args:
        input_shape: Shape of one sample.
        hidden: Width of each hidden layer.

    Example:
        >>> MLP((1, 8, 8), hidden=(32, 16)).feature_dim
        16
    """

    def __init__(self, input_shape: Sequence[int], hidden: Sequence[int] = (400, 400)) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise InputError(f"hidden={list(hidden)!r}", "widths >= 1 of at least one layer", "try hidden=[400,400]")
        self.spec = {"name": "mlp", "input_shape": list(input_shape), "hidden": list(hidden)}
        widths = [math.prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.feature_dim = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, hidden[-1]) of inputs (N, ...)."""
        return self.layers(x)


class TorchvisionBackbone(nn.Module):
    """Any torchvision classification model without its last Linear layer.

    Grey images are repeated to the three channels that these models expect.

    Args:
        input_shape: Shape of one sample, (C, H, W).
        model: torchvision's name, for example ``"resnet18"``.
        weights: None (random), a torchvision weight name (``"DEFAULT"``, ``"IMAGENET1K_V1"``), or the path of a local
            state dict; entries of another head are left out.
        small_images: For ResNets: a 3x3 stem without max-pooling, as is usual for 32x32 images.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "resnet18",
        weights: str | None = None,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        import torchvision

        if model not in torchvision.models.list_models(module=torchvision.models):
            raise InputError(
                f"model={model!r}", "a torchvision classification model", "torchvision.models.list_models() names them"
            )
        self.spec = {
            "name": "torchvision",
            "input_shape": list(input_shape),
            "model": model,
            "small_images": small_images,
        }
        local = weights is not None and (Path(weights).suffix in (".pt", ".pth", ".ckpt") or Path(weights).exists())
        self.network = torchvision.models.get_model(model, weights=None if local else weights)
        if local:
            _load_matching(self.network, Path(str(weights)))
        if small_images:
            _small_stem(self.network, model)
        name, head = [(n, m) for n, m in self.network.named_modules() if isinstance(m, nn.Linear)][-1]
        self.network.set_submodule(name, nn.Identity())
        self.feature_dim = head.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, feature_dim) of images (N, 1 or 3, H, W)."""
        return self.network(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)


BACKBONES: dict[str, Any] = {"mlp": MLP, "torchvision": TorchvisionBackbone}


def backbone_from_spec(spec: dict[str, Any]) -> nn.Module:
    """Build one of our own backbones from the plain values in a checkpoint; nothing else can be named there."""
    name = spec.get("name")
    if name not in BACKBONES:
        raise InputError(f"backbone {name!r} in the checkpoint", f"one of {', '.join(BACKBONES)}", "pass backbone=...")
    return BACKBONES[name](**{key: value for key, value in spec.items() if key != "name"})


def _small_stem(network: nn.Module, model: str) -> None:
    if not isinstance(getattr(network, "conv1", None), nn.Conv2d) or not hasattr(network, "maxpool"):
        raise InputError(f"small_images=True with model={model!r}", "a ResNet", "set small_images=false")
    network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)  # type: ignore[union-attr]
    network.maxpool = nn.Identity()


def _load_matching(network: nn.Module, path: Path) -> None:
    """Load a local state dict; a head of another size is left as it is."""
    if not path.is_file():
        raise InputError(f"weights={str(path)!r}", "an existing file", "give a path, a torchvision name, or null")
    state = torch.load(path, map_location="cpu", weights_only=True)
    state = state.get("state_dict", state)
    own = network.state_dict()
    matching = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not matching:
        raise InputError(f"weights={str(path)!r}", "entries that match the model", "check the model's name")
    network.load_state_dict(matching, strict=False)
