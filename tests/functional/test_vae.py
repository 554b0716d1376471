"""The loss of a VAE, against torch.distributions in float64 and a hand-worked case."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from lightning_cl.functional.vae import gaussian_kl, reconstruction_loss, reparameterize, vae_loss


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def posterior(mean: Tensor, log_variance: Tensor) -> Independent:
    return Independent(Normal(mean, (0.5 * log_variance).exp()), 1)


def test_divergence_is_that_of_torch_distributions():
    mean, log_variance = drawn(7, 5), drawn(7, 5, seed=1)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    torch.testing.assert_close(
        gaussian_kl(mean, log_variance), kl_divergence(posterior(mean, log_variance), prior), rtol=0, atol=1e-12
    )


def test_divergence_by_hand():
    mean, log_variance = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]])
    assert float(gaussian_kl(mean, log_variance)) == pytest.approx(2.0 + 0.5 * (4 - 1 - math.log(4)))


def test_reconstruction_is_a_negative_log_likelihood():
    output, x = drawn(7, 6), drawn(7, 6, seed=1).sigmoid()
    bernoulli = Bernoulli(logits=output, validate_args=False)  # values between 0 and 1, not only 0 and 1
    torch.testing.assert_close(reconstruction_loss(output, x), -bernoulli.log_prob(x).sum(1), rtol=0, atol=1e-12)
    gaussian = -Normal(output, 1.0).log_prob(x).sum(1) - 6 * 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(reconstruction_loss(output, x, "gaussian"), gaussian, rtol=0, atol=1e-12)


@pytest.mark.parametrize("decoder", ["bernoulli", "gaussian"])
def test_loss_and_gradient_are_those_of_the_bound(decoder: str):
    mean, log_variance, output = (drawn(4, n, seed=n).requires_grad_() for n in (3, 3, 6))
    log_variance = (log_variance + 0.5).detach().requires_grad_()
    x = drawn(4, 6, seed=9).sigmoid()
    loss = vae_loss(output, x, mean, log_variance, decoder)  # type: ignore[arg-type]
    likelihood = Bernoulli(logits=output, validate_args=False) if decoder == "bernoulli" else Normal(output, 1.0)
    constant = 0.0 if decoder == "bernoulli" else 6 * 0.5 * math.log(2 * math.pi)
    prior = Independent(Normal(torch.zeros(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)), 1)
    bound = likelihood.log_prob(x).sum(1) + constant - kl_divergence(posterior(mean, log_variance), prior)
    torch.testing.assert_close(loss, -bound / 6, rtol=0, atol=1e-12)
    inputs = (mean, log_variance, output)
    for got, expected in zip(
        torch.autograd.grad(loss.mean(), inputs), torch.autograd.grad(-bound.mean() / 6, inputs), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_extreme_logits_stay_finite():
    output = torch.tensor([[1e4, -1e4]], requires_grad=True)
    loss = reconstruction_loss(output, torch.tensor([[0.0, 1.0]]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_reparameterize_has_the_distribution():
    mean, log_variance = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.0, math.log(9.0)]])
    drawn = reparameterize(mean, log_variance, torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=0.03)
    torch.testing.assert_close(drawn.std(0), torch.tensor([1.0, 3.0]), rtol=0, atol=0.03)


def test_unknown_decoder():
    with pytest.raises(ValueError, match=r"decoder='poisson'; expected one of bernoulli, gaussian\. HINT: "):
        reconstruction_loss(torch.zeros(1, 1), torch.zeros(1, 1), "poisson")  # type: ignore[arg-type]
