"""What pretrained weights expect of an image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PretrainedInputs:
    """Size and normalisation of the images on which weights were trained.

    Args:
        size: Height and width in pixels.
        mean: Of each channel, of images in [0, 1]; None: not normalised.
        std: Likewise, the standard deviations.
        interpolation: ``"bilinear"``, ``"bicubic"``, ...: how images were resized.

    Example:
        >>> PretrainedInputs().normalize is None
        True
    """

    size: int = 224
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"

    @property
    def normalize(self) -> list[list[float]] | None:
        """[mean, std] as ``build_stream(normalize=...)`` takes it."""
        return None if self.mean is None or self.std is None else [list(self.mean), list(self.std)]

    def transform(self) -> Any:
        """For data of your own: a PIL image or an image tensor to a float tensor (3, size, size), normalised.

        The image's centre square is resized, nothing else is cut off. Picklable.
        """
        import torch
        from torchvision.transforms import v2

        from lightning_cl.streams.folders import ResizeAndCrop

        steps: list[Any] = [ResizeAndCrop(self.size, self.interpolation), v2.ToImage()]
        steps.append(v2.ToDtype(torch.float32, scale=True))
        if self.mean is not None and self.std is not None:
            steps.append(v2.Normalize(list(self.mean), list(self.std)))
        return v2.Compose(steps)


def pretrained_inputs(backbone: Mapping[str, Any]) -> PretrainedInputs:
    """What the weights of a backbone expect, from its section of a config; nothing is built.

    Weights that are random, or a backbone that does not say, expect 224 pixels and no normalisation.

    Args:
        backbone: ``{"_target_": "lightning_cl.finetuning.TimmBackbone", "model": ..., "weights": ...}``.

    Raises:
        InputError: As the backbone does for unknown names.

    Example:
        >>> pretrained_inputs({"_target_": "lightning_cl.finetuning.MLP", "hidden": [10]}).size
        224
    """
    from lightning_cl import finetuning

    module, _, name = str(backbone.get("_target_", "")).rpartition(".")
    kind: Any = getattr(finetuning, name, None) if module.startswith("lightning_cl.finetuning") else None
    if not hasattr(kind, "inputs_of"):
        return PretrainedInputs()
    known = {key: backbone[key] for key in ("model", "weights") if key in backbone}
    return kind.inputs_of(**known)


def as_floats(values: Sequence[Any]) -> tuple[float, ...]:
    """Plain numbers, from a list of any kind."""
    return tuple(float(value) for value in values)
