"""Feature extractors from torchvision."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._image_backbone import ImageBackbone, is_local
from lightning_cl.finetuning.image_inputs import PretrainedInputs, as_floats
from lightning_cl.finetuning.loading import load_weights


class TorchvisionBackbone(ImageBackbone):
    """A torchvision classification model without its last Linear layer; what stands before it, dropout too, is kept.

    Grey images are repeated to the three channels that these models expect. Vision transformers are built for
    the size of the images, but with weights by name for 224.

    Args:
        input_shape: Shape of one sample, (C, H, W), C 1 or 3.
        model: torchvision's name, for example ``"resnet18"``.
        weights: None (random), a torchvision weight name (``"DEFAULT"``, ``"IMAGENET1K_V1"``), or the path of a local
            state dict: of torchvision's model with a head of any size, which is left out, or of this class.
        small_images: For ResNets: a 3x3 stem without max-pooling, as is usual for 32x32 images.
        rename: ``{regex: replacement}`` for the names in a local file, see
            :func:`~lightning_cl.finetuning.load_weights`.

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
        rename: dict[str, str] | None = None,
    ) -> None:
        super().__init__(input_shape)
        self.spec: dict[str, Any] = {
            "name": "torchvision",
            "input_shape": list(input_shape),
            "model": model,
            "small_images": small_images,
        }
        local = is_local(weights)
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
        name, _ = linear[-1]
        self.network.set_submodule(name, nn.Identity())
        if weights is not None and local:
            load_weights(self.network, weights, rename=rename)
        self._measure(model)

    @staticmethod
    def inputs_of(model: str = "resnet18", weights: str | None = None) -> PretrainedInputs:
        """What the weights expect of an image; those of a local file are taken for the model's usual ones."""
        if weights is None:
            return PretrainedInputs()
        import torchvision

        name = _weights_name(model, "DEFAULT" if is_local(weights) else weights)
        made = torchvision.models.get_model_weights(model)[name].transforms()
        return PretrainedInputs(
            int(made.crop_size[0]), as_floats(made.mean), as_floats(made.std), made.interpolation.value
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

    _check_name(model)
    if weights is not None:
        weights = _weights_name(model, weights)
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


def _check_name(model: str) -> None:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if model not in known:
        close = difflib.get_close_matches(model, known, n=3)
        raise InputError(
            f"model={model!r}",
            "a torchvision classification model",
            f"did you mean {' or '.join(close)}?" if close else "torchvision.models.list_models() names them",
        )


def _weights_name(model: str, weights: str) -> str:
    """The weights' name without that of their class."""
    import torchvision

    _check_name(model)
    names = [entry.name for entry in torchvision.models.get_model_weights(model)]
    name = weights.rpartition(".")[2]
    if name not in (*names, "DEFAULT"):
        raise InputError(
            f"weights={weights!r} of {model!r}", f"DEFAULT, {', '.join(names)}, a path, or null", "weights=DEFAULT"
        )
    return name
