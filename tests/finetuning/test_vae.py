import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, linear, relu

from lightning_cl.errors import InputError
from lightning_cl.finetuning import VAE
from lightning_cl.functional.seeding import generator


def made(**options: Any) -> VAE:
    return VAE((2, 3), **{"hidden": (8, 5), "latent": 4, "generator": generator(0), **options})


def test_forward_is_the_loss_layer_by_layer():
    vae = made()
    x, noise = torch.rand(6, 2, 3, generator=generator(1)), torch.randn(6, 4, generator=generator(2))
    p = dict(vae.named_parameters())

    def layer(name: str, h: torch.Tensor) -> torch.Tensor:
        return linear(h, p[f"{name}.weight"], p[f"{name}.bias"])

    hidden = relu(layer("encoder.3", relu(layer("encoder.1", x.flatten(1)))))
    mean, log_variance = layer("mean", hidden), layer("log_variance", hidden)
    z = mean + (log_variance / 2).exp() * noise
    output = layer("decoder.4", relu(layer("decoder.2", relu(layer("decoder.0", z)))))
    assert [tuple(p[f"decoder.{i}.weight"].shape) for i in (0, 2, 4)] == [(5, 4), (8, 5), (6, 8)]
    entropy = binary_cross_entropy_with_logits(output, x.flatten(1), reduction="none").sum(1)
    divergence = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum(1)
    torch.testing.assert_close(vae(x, noise), (entropy + divergence) / 6)


def test_samples_are_means_in_the_input_shape():
    noise = torch.randn(6, 4, generator=generator(2))
    sampled = made().sample(noise)
    assert sampled.shape == (6, 2, 3)
    assert bool(((sampled > 0) & (sampled < 1)).all())
    other = made()
    assert torch.equal(made(decoder="gaussian").sample(noise).sigmoid(), sampled)
    nn.init.zeros_(other.decoder[4].weight)
    nn.init.zeros_(other.decoder[4].bias)
    assert torch.equal(made().sample(noise, other.decoder), torch.full((6, 2, 3), 0.5))


def test_weights_are_those_of_linear_layers_and_of_the_seed_alone():
    before = torch.get_rng_state()
    vae = made()
    assert torch.equal(torch.get_rng_state(), before)
    for one, two, other in zip(vae.parameters(), made().parameters(), made(generator=generator(1)).parameters(),
                               strict=True):  # fmt: skip
        assert torch.equal(one, two)
        assert not torch.equal(one, other)
    wide = VAE((100,), hidden=(300,), latent=2, generator=generator(0)).encoder[1].weight.detach()
    assert float(wide.abs().max()) == pytest.approx(0.1, rel=1e-3)
    assert float(wide.std()) == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


def test_learns_two_clusters():
    vae, random = VAE((4, 8), hidden=(32,), latent=2, generator=generator(0)), generator(3)
    x = torch.tensor([0.9, 0.1]).repeat_interleave(32)[:, None, None].expand(64, 4, 8)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    for _ in range(200):
        loss = vae(x, torch.randn(64, 2, generator=random)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert entropy < float(loss.detach()) < 0.45  # log 2 for a decoder that does not look at the latent
    sampled = vae.sample(torch.randn(500, 2, generator=random)).detach()
    assert 0.3 < float((sampled.mean((1, 2)) > 0.5).float().mean()) < 0.7
    assert float((sampled - 0.5).abs().mean()) > 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": ()}, r"hidden=\[\]; expected widths >= 1"),
        ({"hidden": (4, 0)}, r"hidden=\[4, 0\]; expected widths >= 1"),
        ({"latent": 0}, "latent=0; expected an integer >= 1"),
        ({"decoder": "poisson"}, "decoder='poisson'; expected one of bernoulli, gaussian"),
    ],
)
def test_refuses(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        made(**options)
