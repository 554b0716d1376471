"""Corruptions of images in five severities, vectorised over batches, with noise that belongs to the sample.

After Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations"
(arXiv:1903.12261). Ours differ where theirs are per image or need other libraries: the parameters are for images of any
size in [0, 1] (lengths are in fractions of the shorter side), fog is smooth noise, and every corruption grows with
severity on the same noise.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams.counter_noise import normal, uniform


def _gaussian_noise(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    return x + amount * normal(x, ids, seed)


def _shot_noise(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    # the normal approximation of a Poisson count of x / amount² photons; exact counts would need a draw per severity
    return x + amount * x.clamp(min=0).sqrt() * normal(x, ids, seed)


def _impulse_noise(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    u = uniform(x, ids, seed)
    # the same u decides both: salt below amount / 2, pepper from there to amount, nested as the amount grows
    pepper = (u >= 0.5) & (u < 0.5 + amount / 2)
    return x.masked_fill(u < amount / 2, 1.0).masked_fill(pepper, 0.0)


def _blur(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    # the constant keeps the mildest severity visible on 8x8 images
    sigma = 0.3 + amount * min(x.shape[-2:])
    radius = max(1, min(round(3 * sigma), min(x.shape[-2:]) - 1))
    weights = torch.exp(-torch.arange(-radius, radius + 1).float().square() / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, -1)
    x = functional.pad(x, [radius] * 4, mode="replicate")
    x = functional.conv2d(x, weights, groups=x.shape[1])
    return functional.conv2d(x, weights.transpose(2, 3), groups=x.shape[1])


def _contrast(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (1 - amount) * (x - mean)


def _brightness(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    return x + amount


def _pixelate(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    # a blend with the coarsest blocks instead of ever larger blocks: on small images sizes collapse into each other
    height, width = x.shape[-2:]
    small = functional.adaptive_avg_pool2d(x, (max(1, height // 4), max(1, width // 4)))
    return torch.lerp(x, functional.interpolate(small, size=(height, width), mode="nearest"), amount)


def _fog(x: Tensor, amount: float, ids: Tensor, seed: int) -> Tensor:
    layer = x.new_zeros(len(x), 1, *x.shape[-2:])
    for octave, cells in enumerate((2, 4, 8)):
        noise = uniform(x.new_empty(len(x), 1, cells, cells), ids, derive_seed(seed, octave))
        layer += functional.interpolate(noise, size=x.shape[-2:], mode="bilinear") / 2 ** (octave + 1)
    return torch.lerp(x, 0.5 + layer / 2, amount)


KINDS: dict[str, tuple[Callable[[Tensor, float, Tensor, int], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.14, 0.22, 0.32, 0.45)),
    "shot_noise": (_shot_noise, (0.15, 0.25, 0.40, 0.60, 0.90)),
    "impulse_noise": (_impulse_noise, (0.03, 0.07, 0.12, 0.20, 0.32)),
    "blur": (_blur, (0.015, 0.03, 0.05, 0.08, 0.12)),
    "contrast": (_contrast, (0.3, 0.5, 0.65, 0.8, 0.9)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "pixelate": (_pixelate, (0.2, 0.4, 0.6, 0.8, 1.0)),
    "fog": (_fog, (0.2, 0.32, 0.44, 0.56, 0.7)),
}
"""Each kind's function and its amounts for severities 1 to 5."""


class Corruption:
    """One corruption at one severity: ``f(x, ids) -> x`` on images (N, C, H, W) in [0, 1], clamped to [0, 1].

    The noise is a function of (seed, kind, id), not of the severity or the batch: training and evaluation passes see
    the same corrupted image, and a higher severity is the same noise, stronger.

    Args:
        kind: One of `KINDS`.
        severity: 1 (mild) to 5 (hard), or 0 for the clean image.
        seed: Seed of the noise.

    Raises:
        InputError: For an unknown kind or severity.
    """

    def __init__(self, kind: str, severity: int, seed: int = 0) -> None:
        if kind not in KINDS:
            raise InputError(f"corruption kind={kind!r}", f"one of {', '.join(KINDS)}", "set kind=gaussian_noise")
        if severity not in range(6):
            raise InputError(f"severity={severity!r}", "an integer from 0 (clean) to 5", "set severity=3")
        self.kind, self.severity = kind, severity
        self.name = f"{kind} {severity}" if severity else "clean"
        self._seed = derive_seed(seed, "corruption", kind)

    def __call__(self, x: Tensor, ids: Tensor) -> Tensor:
        """Corrupt the batch ``x``, whose samples are called ``ids``."""
        if self.severity == 0:
            return x
        corrupt, amounts = KINDS[self.kind]
        return corrupt(x, amounts[self.severity - 1], ids, self._seed).clamp_(0, 1)
