"""Feature extractors from timm."""

import difflib
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_cl._hugging_face import fetching
from lightning_cl.errors import InputError, shortened
from lightning_cl.finetuning._image_backbone import USE_A_FILE, ImageBackbone, is_local
from lightning_cl.finetuning.image_inputs import PretrainedInputs, as_floats
from lightning_cl.finetuning.loading import load_weights


class TimmBackbone(ImageBackbone):
    """A timm model without its classifier: pooled features. Needs the extra ``[timm]``.

    Grey images are repeated to three channels. Models of a fixed size, such as vision transformers, are built for the
    size of the images; timm resamples the position embeddings of weights by name.

    Args:
        input_shape: Shape of one sample, (C, H, W), C 1 or 3.
        model: timm's name, for example ``"resnet18"`` or, with a tag, ``"vit_tiny_patch16_224.augreg_in21k"``.
        weights: None (random); ``"DEFAULT"`` or a tag of the model, which are downloaded; or the path of a local file
            (any that :func:`~lightning_cl.finetuning.load_weights` reads, with a head of any size, which is left out).
        rename: ``{regex: replacement}`` for the names in a local file.

    Raises:
        InputError: Without timm; for an unknown name; weights that cannot be had or do not fit; images of a size that
            the model does not take.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        model: str = "resnet18",
        weights: str | None = None,
        rename: dict[str, str] | None = None,
    ) -> None:
        super().__init__(input_shape)
        self.spec = {"name": "timm", "input_shape": list(input_shape), "model": model}
        local = is_local(weights)
        full = _full_name(model, None if local else weights)
        options: dict[str, Any] = {"num_classes": 0}
        if _config(full).fixed_input_size:
            options["img_size"] = tuple(input_shape[1:])
        self.network = _built(full, None if local else weights, options, list(input_shape))
        if weights is not None and local:
            load_weights(self.network, weights, rename=rename)
        self._measure(model)

    @staticmethod
    def inputs_of(model: str = "resnet18", weights: str | None = None) -> PretrainedInputs:
        """What the weights expect of an image; those of a local file are taken for the model's usual ones."""
        if weights is None:
            return PretrainedInputs()
        config = _config(_full_name(model, None if is_local(weights) else weights))
        _, height, _ = config.input_size
        return PretrainedInputs(height, as_floats(config.mean), as_floats(config.std), config.interpolation)


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(f"model=timm ({error})", "the package timm", "pip install 'lightning-cl[timm]'") from error
    return timm


def _full_name(model: str, weights: str | None) -> str:
    """The model's name with the tag of its weights.

    Raises:
        InputError: For a model or a tag that there is not.
    """
    timm = _timm()
    plain, _, tag = model.partition(".")
    if not timm.is_model(plain):
        close = difflib.get_close_matches(plain, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models('*name*') finds them"
        raise InputError(f"model={model!r}", "a model of timm", hint)
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{plain}.*")]
    wanted = tag if weights in (None, "DEFAULT") else str(weights).removeprefix(f"{plain}.")
    if weights is not None and not tags:
        raise InputError(f"weights={weights!r} of {model!r}", "a path or null: timm has none of it", "weights=null")
    if wanted and wanted not in tags:
        raise InputError(f"weights={wanted!r} of {plain!r}", f"DEFAULT, {', '.join(tags)}, a path, or null", "DEFAULT")
    return f"{plain}.{wanted}" if wanted else plain


def _config(full: str) -> Any:
    """timm's description of the weights."""
    found = _timm().get_pretrained_cfg(full)
    if found is None:
        raise InputError(f"model={full!r}", "a model of which timm describes the input", "use another model")
    return found


def _built(full: str, weights: str | None, options: dict[str, Any], shape: list[int]) -> nn.Module:
    timm = _timm()
    try:
        if weights is None:
            return timm.create_model(full, pretrained=False, **options)
        with fetching(f"weights={weights!r} of model={full!r}", USE_A_FILE):
            return timm.create_model(full, pretrained=True, **options)
    except InputError:
        raise
    except (AssertionError, ValueError, RuntimeError, TypeError) as error:
        hint = "resize the images, for example stream.dataset.size=224, or choose another model"
        raise InputError(
            f"input_shape={shape} with model={full!r} ({shortened(error, 120)})", "images of a size that it takes", hint
        ) from error
