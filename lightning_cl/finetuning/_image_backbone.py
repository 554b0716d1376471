"""What the image backbones have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError, shortened

#: what to do where weights cannot be had by their name
USE_A_FILE = "give a local file: model.backbone.weights=FILE, or null"
#: endings of files of weights, which tell a path from a name where the file does not exist
ENDINGS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")


class ImageBackbone(nn.Module):
    """A network that gives features of RGB images; grey images are repeated.

    A subclass sets ``network``, ``spec`` (plain values that build it again, without its weights) and, by
    :meth:`_measure`, ``feature_dim``.

    Args:
        input_shape: Shape of one sample, (C, H, W), C 1 or 3.

    Raises:
        InputError: For another shape.
    """

    network: nn.Module
    spec: dict[str, Any]
    feature_dim: int

    def __init__(self, input_shape: Sequence[int]) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in (1, 3):
            raise InputError(f"input_shape={list(input_shape)}", "(1 or 3, height, width)", "use model=mlp")

    def forward(self, x: Tensor) -> Tensor:
        """Features of shape (N, feature_dim) of images (N, 1 or 3, H, W)."""
        return self.network(x.expand(-1, 3, -1, -1) if x.shape[1] == 1 else x)

    def _measure(self, model: str) -> None:
        """Set ``feature_dim`` from the features of one image.

        Raises:
            InputError: If the network does not take images of this size, or gives no features (N, d).
        """
        shape = self.spec["input_shape"]
        self.eval()
        try:
            with torch.no_grad():
                features = self(torch.zeros(1, *shape))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise InputError(
                f"input_shape={shape} with model={model!r} ({shortened(error, 120)})",
                "images of a size that the model takes",
                "resize them, for example stream.dataset.size=224, or choose another model",
            ) from error
        self.train()
        if not isinstance(features, Tensor) or features.dim() != 2:
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise InputError(f"model={model!r} with features {found}", "(1, d)", "use another model")
        self.feature_dim = features.shape[1]


def is_local(weights: str | None) -> bool:
    """Whether weights are given by a path rather than by a name."""
    return weights is not None and (Path(weights).suffix in ENDINGS or Path(weights).exists())
