"""Feature extractors from torchvision."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError


class TorchvisionBackbone(nn.Module):
    """A torchvision classification model without its last Linear layer; what stands before it, dropout too, is kept.

    Grey images are repeated to the three channels that these models expect. Vision transformers are built for
    the size of the images, but with weights by name for 224.

    Args:
        input_shape: Shape of one sample, (C, H, W), C 1 or 3.
        model: torchvision's name, for example ``"resnet18"``.
        weights: None (random), a torchvision weight name (``"DEFAULT"``, ``"IMAGENET1K_V1"``), or the path of a local
            state dict: of torchvision's model with a head of any size, which is left out, or of this class.
        small_images: For ResNets: a 3x3 stem without max-pooling, as is usual for 32x32 images.

    Raises:
        InputError: For an unknown name; models with auxiliary outputs (GoogLeNet, Inception) or without a Linear
            classifier (SqueezeNet); weights that cannot be had or do not fit; images that are too small.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "resnet18",
        weights: str | None = None,
        small_images: bool = False,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise InputError(f"input_shape={list(input_shape)}", "(1 or 3, height, width)", "use model=mlp")
        self.spec: dict[str, Any] = {
            "name": "torchvision",
            "input_shape": list(input_shape),
            "model": model,
            "small_images": small_images,
        }
        local = weights is not None and (Path(weights).suffix in (".pt", ".pth", ".ckpt") or Path(weights).exists())
        self.network = _torchvision_model(model, None if local else weights, input_shape)
        linear = [(name, part) for name, part in self.network.named_modules() if isinstance(part, nn.Linear)]
        if not linear or getattr(self.network, "aux_logits", False):
            raise InputError(
                f"model={model!r}, with auxiliary outputs or no Linear classifier",
                "a model whose only output is that of its last Linear layer",
                "use resnet18 or mobilenet_v3_small, or give a backbone of your own by _target_",
            )
        if small_images:
            _small_stem(self.network, model)
        name, head = linear[-1]
        self.feature_dim = head.in_features
        self.network.set_submodule(name, nn.Identity())
        if local:
            _load_local(self.network, Path(str(weights)))
        self._check_size(model)

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, feature_dim) of images (N, 1 or 3, H, W)."""
        return self.network(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)

    def _check_size(self, model: str) -> None:
        shape = self.spec["input_shape"]
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"input_shape={shape} with model={model!r} ({' '.join(str(error).split())[:120]})",
                "images of a size that the model takes",
                "resize them, for example stream.dataset.size=224, or choose another model",
            ) from error
        self.train()
        if features.shape != (1, self.feature_dim):
            raise InputError(
                f"model={model!r} with features {tuple(features.shape)}", f"(1, {self.feature_dim})", "use another"
            )


def _small_stem(network: nn.Module, model: str) -> None:
    stem = getattr(network, "conv1", None)
    if not isinstance(stem, nn.Conv2d) or not hasattr(network, "maxpool"):
        raise InputError(f"small_images=True with model={model!r}", "a ResNet", "set small_images=false")
    network.conv1 = nn.Conv2d(3, stem.out_channels, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()


def _torchvision_model(model: str, weights: str | None, input_shape: Sequence[int]) -> nn.Module:
    """The model as torchvision builds it."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        close = difflib.get_close_matches(model, known, n=3)
        raise InputError(
            f"model={model!r}",
            "a torchvision classification model",
            f"did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() names them",
        )
    if weights is not None:
        names = [entry.name for entry in torchvision.models.get_model_weights(model)]
        if weights.rpartition(".")[2] not in (*names, "DEFAULT"):
            raise InputError(
                f"weights={weights!r} of {model!r}", f"DEFAULT, {', '.join(names)}, a path, or null", "weights=DEFAULT"
            )
        weights = weights.rpartition(".")[2]
    sized: dict[str, Any] = {}
    if weights is None and model.startswith("vit_"):
        sized = {"image_size": input_shape[1]}
    elif weights is None and model.startswith("maxvit"):
        sized = {"input_size": tuple(input_shape[1:])}
    try:
        return torchvision.models.get_model(model, weights=weights, **sized)
    except OSError as error:
        raise InputError(
            f"weights={weights!r} of {model!r} cannot be downloaded ({error})",
            "a network connection, or the file in torch's cache",
            "give a local file: model.backbone.weights=FILE.pth, or null",
        ) from error
    except (AssertionError, ValueError) as error:
        raise InputError(
            f"input_shape={list(input_shape)} with model={model!r} ({error})",
            "a size that it takes",
            "resize the images",
        ) from error


def _load_local(network: nn.Module, path: Path) -> None:
    """Load a local state dict under any prefix; the head's entries are left out, everything else has to be there."""
    if not path.is_file():
        raise InputError(f"weights={str(path)!r}", "an existing file", "give a path, a torchvision name, or null")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        saved = saved.get("state_dict", saved)
    except Exception as error:
        raise InputError(
            f"weights={str(path)!r} cannot be read ({type(error).__name__})",
            "a state dict of tensors",
            "write it with torch.save(model.state_dict(), FILE)",
        ) from error
    own = network.state_dict()
    first = next(iter(own))
    prefix = next((key.removesuffix(first) for key in saved if f".{key}".endswith(f".{first}")), "")
    found = {key: saved[prefix + key] for key in own if prefix + key in saved}
    wrong = [key for key, value in own.items() if key not in found or found[key].shape != value.shape]
    if wrong:
        raise InputError(
            f"weights={str(path)!r} without {len(wrong)} entries of the model, such as {wrong[0]!r} of its shape",
            "weights of the same model (its head may differ)",
            "check model and small_images",
        )
    network.load_state_dict(found)
