"""Image feature extractors from Hugging Face transformers."""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_cl._hugging_face import fetching, require_transformers
from lightning_cl.errors import InputError, shortened
from lightning_cl.finetuning._find_head import find_heads
from lightning_cl.finetuning._image_backbone import USE_A_FILE, ImageBackbone, is_local
from lightning_cl.finetuning.image_inputs import PretrainedInputs, as_floats
from lightning_cl.finetuning.loading import load_weights


class HFImageBackbone(ImageBackbone):
    """An HF image classification model without its classifier: the features that it reads. Needs the extra ``[hf]``.

    Grey images are repeated to three channels. Code from a hub is never run. Checkpoints hold the whole configuration,
    so a reload needs neither the hub nor the folder.

    Args:
        input_shape: Shape of one sample, (C, H, W), C 1 or 3.
        model: A name on the hub, a local folder of ``save_pretrained``, or an architecture (``"vit"``, ``"resnet"``,
            ``"convnext"``), which has no weights by name.
        weights: ``"DEFAULT"``: those of the hub's model or the folder; None: random; or the path of a local file.
        config: Values of the configuration that differ, for instance ``{"hidden_size": 192}``.
        rename: ``{regex: replacement}`` for the names in a local file.

    Raises:
        InputError: Without transformers; for a name that is none of these; weights that cannot be had or do not fit;
            images of a size that the model does not take.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "google/vit-base-patch16-224",
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        rename: dict[str, str] | None = None,
    ) -> None:
        super().__init__(input_shape)
        by_name = weights is not None and not is_local(weights)
        if by_name and weights != "DEFAULT":
            raise InputError(f"weights={weights!r} of {model!r}", "DEFAULT, a path, or null", "weights=DEFAULT")
        options = dict(config or {})
        if not by_name:
            options.setdefault("image_size", int(input_shape[1]))
        plain = _config(model, options)
        self.spec = {
            "name": "hf_image",
            "input_shape": list(input_shape),
            "model": plain["model_type"],
            "config": plain,
        }
        self.network = _network(model, plain, by_name)
        if weights is not None and not by_name:
            load_weights(self.network, weights, rename=rename)
        self._measure(model)

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, feature_dim) of images (N, 1 or 3, H, W)."""
        return self.network(pixel_values=x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x).logits

    @staticmethod
    def inputs_of(model: str = "google/vit-base-patch16-224", weights: str | None = None) -> PretrainedInputs:
        """What the weights expect of an image, from the model's image processor."""
        if weights is None:
            return PretrainedInputs()
        file = Path(model) / "preprocessor_config.json"
        if _architecture(model) or (Path(model).is_dir() and not file.is_file()):
            raise InputError(
                f"model={model!r}, which does not say how its images were normalised",
                "a model with a preprocessor_config.json",
                "give stream.normalize=[[0.5,0.5,0.5],[0.5,0.5,0.5]], stream.dataset.size and .interpolation",
            )
        from transformers.image_processing_base import ImageProcessingMixin

        with fetching(f"weights={weights!r} of model={model!r}", USE_A_FILE, folder=Path(model).is_dir()):
            found, _ = ImageProcessingMixin.get_image_processor_dict(model)
        sizes = found.get("crop_size") or found.get("size") or 224
        size = next(iter(sizes.values())) if isinstance(sizes, dict) else sizes
        mean, std = (as_floats(found[key]) if key in found else None for key in ("image_mean", "image_std"))
        words = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
        if not found.get("do_normalize", True):
            mean = std = None
        return PretrainedInputs(int(size), mean, std, words.get(found.get("resample", 2), "bilinear"))


def _architecture(model: str) -> bool:
    """Whether a name is that of an architecture rather than of a folder or a hub's model."""
    return not Path(model).exists() and model in require_transformers("model=hf_image").CONFIG_MAPPING


def _config(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration as plain values."""
    transformers = require_transformers("model=hf_image")
    if _architecture(model):
        options = {key: value for key, value in options.items() if key != "model_type"}
        found = transformers.CONFIG_MAPPING[model](**options)
    elif not Path(model).is_dir() and "/" not in model:
        close = difflib.get_close_matches(model, list(transformers.CONFIG_MAPPING), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "write OWNER/NAME as the hub does"
        raise InputError(f"model={model!r}", "a hub name, a local folder, or an architecture", hint)
    else:
        try:
            with fetching(f"model={model!r}", "a local folder, or an architecture: vit", folder=Path(model).is_dir()):
                found = transformers.AutoConfig.from_pretrained(model, **options)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"model={model!r} ({shortened(error, 120)})", "a config.json with a model_type", "try another"
            ) from error
    # through JSON: a checkpoint holds plain values only
    return json.loads(found.to_json_string(use_diff=False))


def _network(model: str, plain: dict[str, Any], by_name: bool) -> nn.Module:
    transformers = require_transformers("model=hf_image")
    kind = transformers.AutoModelForImageClassification
    config = transformers.CONFIG_MAPPING[plain["model_type"]].from_dict(plain)
    try:
        if by_name:
            if _architecture(model):
                raise InputError(f"weights='DEFAULT' of {model!r}", "a model, not an architecture", "weights=null")
            with fetching(f"weights='DEFAULT' of model={model!r}", USE_A_FILE, folder=Path(model).is_dir()):
                network = kind.from_pretrained(model, config=config)
        else:
            network = kind.from_config(config)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"model={model!r} ({shortened(error, 120)})", "a model that classifies images", "try vit or resnet"
        ) from error
    for name in find_heads(network):
        network.set_submodule(name, nn.Identity())
    return network.float()  # weights may be stored in half precision
