"""The loss of a variational autoencoder (Kingma & Welling 2014, arXiv:1312.6114), one value for each sample."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

Decoder = Literal["bernoulli", "gaussian"]
DECODERS: tuple[Decoder, ...] = ("bernoulli", "gaussian")


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence of a diagonal Gaussian from the standard one, (N,).

    .. math:: \frac{1}{2}\sum_j \mu_j^2 + \sigma_j^2 - 1 - \log \sigma_j^2

    Args:
        mean: :math:`\mu`, (N, d).
        log_variance: :math:`\log\sigma^2`, (N, d).

    Example:
        >>> gaussian_kl(torch.zeros(1, 3), torch.zeros(1, 3))
        tensor([0.])
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def reconstruction_loss(output: Tensor, x: Tensor, decoder: Decoder = "bernoulli") -> Tensor:
    r"""Negative log-likelihood of the inputs under a decoder, summed over the features, (N,).

    ``"bernoulli"``: the binary cross entropy of inputs in [0, 1], with ``output`` its logits. ``"gaussian"``: unit
    variance around ``output``, without its constant: :math:`\frac{1}{2}\sum_j (x_j - \hat x_j)^2`.

    Args:
        output: What the decoder gives, (N, D).
        x: Inputs, (N, D).
        decoder: Distribution of the inputs.

    Raises:
        ValueError: If there is no such decoder.
    """
    if decoder == "bernoulli":
        return binary_cross_entropy_with_logits(output, x, reduction="none").sum(1)
    if decoder == "gaussian":
        return 0.5 * (x - output).square().sum(1)
    raise ValueError(f"decoder={decoder!r}; expected one of {', '.join(DECODERS)}. HINT: 'bernoulli' is for [0, 1]")


def vae_loss(output: Tensor, x: Tensor, mean: Tensor, log_variance: Tensor, decoder: Decoder = "bernoulli") -> Tensor:
    """Negative evidence lower bound divided by the number of features, (N,).

    The division (van de Ven & Tolias 2018, arXiv:1809.10635) keeps the size of the loss, and with it a learning rate,
    independent of the size of an input; reconstruction and divergence keep their weights of 1 : 1.

    Args:
        output: What the decoder gives, (N, D), of one latent drawn for each sample.
        x: Inputs, (N, D).
        mean: Mean of the latent's distribution, (N, d).
        log_variance: Log of its variance, (N, d).
        decoder: Distribution of the inputs, see :func:`reconstruction_loss`.
    """
    return (reconstruction_loss(output, x, decoder) + gaussian_kl(mean, log_variance)) / x.shape[1]


def reparameterize(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """The latent (N, d) that standard normal ``noise`` (N, d) gives."""
    return mean + torch.exp(0.5 * log_variance) * noise
