"""A fully connected variational autoencoder: a generator of inputs."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.functional.vae import DECODERS, Decoder, reparameterize, vae_loss


class VAE(nn.Module):
    """Variational autoencoder with ReLU layers over flattened inputs of any shape (Kingma & Welling, arXiv:1312.6114).

    The encoder is ``hidden`` layers and two linear ones, for mean and log-variance of the latent; the decoder goes
    from the latent through ``hidden``, reversed, to the input. The prior is a standard Gaussian. Weights are fp32.

    Args:
        input_shape: Shape of one sample.
        hidden: Widths of the encoder's layers.
        latent: Width of the latent.
        decoder: ``"bernoulli"`` for inputs in [0, 1], ``"gaussian"`` (unit variance) for any others.
        generator: Draws the initial weights, as ``nn.Linear``'s; the global one is not touched.

    Raises:
        InputError: For widths < 1, or a decoder that there is not.

    Example:
        >>> VAE((1, 8, 8), hidden=(32,), latent=4).sample(torch.zeros(5, 4)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: Sequence[int] = (400, 400),
        latent: int = 100,
        decoder: Decoder = "bernoulli",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_widths(hidden, latent, decoder)
        self.spec: dict[str, Any] = {
            "input_shape": list(input_shape),
            "hidden": list(hidden),
            "latent": latent,
            "decoder": decoder,
        }
        self.input_shape, self.distribution = tuple(input_shape), decoder
        size = math.prod(input_shape)
        self.encoder = nn.Sequential(nn.Flatten(), *_layers([size, *hidden], generator), nn.ReLU())
        self.mean, self.log_variance = _linear(hidden[-1], latent, generator), _linear(hidden[-1], latent, generator)
        self.decoder = nn.Sequential(*_layers([latent, *reversed(hidden), size], generator))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """Loss of each sample (N,), see :func:`~lightning_cl.functional.vae.vae_loss`.

        Args:
            x: Inputs (N, *input_shape).
            noise: Standard normal (N, latent).
        """
        hidden = self.encoder(x)
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        output = self.decoder(reparameterize(mean, log_variance, noise))
        return vae_loss(output, x.flatten(1), mean, log_variance, self.distribution)

    def sample(self, noise: Tensor, decoder: nn.Module | None = None) -> Tensor:
        """Inputs (N, *input_shape), the means of their distributions, of standard normal ``noise`` (N, latent).

        Args:
            noise: The latents.
            decoder: Another decoder than its own, for example an earlier copy.
        """
        output = (self.decoder if decoder is None else decoder)(noise)
        output = output.sigmoid() if self.distribution == "bernoulli" else output
        return output.unflatten(1, self.input_shape)


def check_widths(hidden: Sequence[int], latent: int, decoder: str) -> None:
    """Refuse what no VAE can be made of."""
    if not hidden or not all(isinstance(width, int) and width >= 1 for width in hidden):
        raise InputError(f"hidden={list(hidden)!r}", "widths >= 1 of at least one layer", "try hidden=[400,400]")
    if not isinstance(latent, int) or latent < 1:
        raise InputError(f"latent={latent!r}", "an integer >= 1", "try latent=100")
    if decoder not in DECODERS:
        raise InputError(f"decoder={decoder!r}", f"one of {', '.join(DECODERS)}", "'bernoulli' is for inputs in [0, 1]")


def _layers(widths: Sequence[int], generator: torch.Generator | None) -> list[nn.Module]:
    """Linear layers with ReLUs between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [_linear(before, after, generator), nn.ReLU()]
    return layers[:-1]


def _linear(before: int, after: int, generator: torch.Generator | None) -> nn.Linear:
    layer = torch.nn.utils.skip_init(nn.Linear, before, after, dtype=torch.float32)
    bound = 1 / math.sqrt(before)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer
