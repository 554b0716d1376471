"""The diagonal Fisher of every kind of layer against a loop of autograd in float64."""

import logging

import pytest
import torch
from torch import nn

from lightning_cl.functional import diagonal_fisher, mas_importance
from lightning_cl.functional._cotangents import Labels, cotangents
from lightning_cl.functional._sample_by_sample import SampleBySample
from tests.functional.fisher_cases import batches, oracle
from tests.functional.layer_cases import LAYERS, TiedLanguageModel
from tests.functional.test_fisher import check_close


@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("layer", LAYERS)
def test_equals_the_autograd_loop(layer, labels, caplog):
    if layer.startswith("hf"):
        pytest.importorskip("transformers")
    build, looped = LAYERS[layer]
    module, data = build()
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        found = diagonal_fisher(module, batches(data, 3), labels=labels)
    check_close(found, oracle(module, data, labels))
    text = caplog.records[-1].getMessage()
    assert f", {len(looped)} sample by sample" in text
    for name in looped:
        assert name in text


@pytest.mark.parametrize("layer", ["conv1d", "attention", "plain parameters", "transposed conv2d", "positions", "lstm"])
def test_the_batch_size_does_not_matter(layer):
    module, data = LAYERS[layer][0](n=15)
    results = [diagonal_fisher(module, batches(data, size)) for size in (1, 7, 15)]
    for other in results[:2]:
        check_close(other, {name: value.double() for name, value in results[2].items()})


def mas_oracle(module, data):
    module = module.double().eval()
    named = dict(module.named_parameters())
    sums = {name: torch.zeros_like(value) for name, value in named.items()}
    for i in range(len(data[0])):
        one = data[0][i : i + 1]
        output = module(one.double() if one.is_floating_point() else one)
        for name, gradient in zip(named, torch.autograd.grad(output.square().sum(), named.values()), strict=True):
            sums[name] += gradient.abs() / len(data[0])
    return sums


@pytest.mark.parametrize("layer", LAYERS)
def test_mas_equals_the_autograd_loop(layer):
    if layer.startswith("hf"):
        pytest.importorskip("transformers")
    module, data = LAYERS[layer][0]()
    check_close(mas_importance(module, batches(data, 3)), mas_oracle(module, data))


def language_model_oracle(module, x, y, labels):
    """The loss of a sample is the mean over its positions that are not ignored; labels of positions are independent."""
    module = module.double().eval()
    named = dict(module.named_parameters())
    sums = {name: torch.zeros_like(value) for name, value in named.items()}
    for i in range(len(x)):
        kept = [t for t in range(x.shape[1]) if y[i, t] != -100]
        score = module(x[i : i + 1])[0].log_softmax(1)
        if labels == "empirical":
            terms = [(1.0, -sum(score[t, y[i, t]] for t in kept) / len(kept))]
        else:
            terms = [(float(score[t, c].exp()), score[t, c] / len(kept)) for t in kept for c in range(score.shape[1])]
        for weight, term in terms:
            gradients = torch.autograd.grad(term, list(named.values()), retain_graph=True)
            for name, gradient in zip(named, gradients, strict=True):
                sums[name] += weight * gradient.square() / len(x)
    return sums


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_language_models_with_tied_weights_and_ignored_positions(labels, caplog):
    torch.manual_seed(0)
    module, x, y = TiedLanguageModel(), torch.randint(0, 9, (5, 4)), torch.randint(0, 9, (5, 4))
    y[0, 1:], y[3, 0] = -100, -100
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        found = diagonal_fisher(module, batches((x, y), 3), labels=labels)
    assert ", 0 sample by sample" in caplog.text
    check_close(found, language_model_oracle(module, x, y, labels))


@pytest.mark.parametrize("layer", ["mlp", "attention, added keys", "lstm"])
def test_vmap_is_the_loop(layer, caplog):
    from tests.functional.fisher_cases import CASES

    module, data = CASES["weight norm"]() if layer == "mlp" else LAYERS[layer][0]()
    loop = diagonal_fisher(module, batches(data, 3), fallback="loop")
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        found = diagonal_fisher(module, batches(data, 3), fallback="vmap", max_bytes=2000)
    assert " vmapped (" in caplog.text
    check_close(found, {name: value.double() for name, value in loop.items()})


def test_what_cannot_be_vmapped_is_looped(monkeypatch, caplog):
    class Deciding(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.LSTM(4, 5, batch_first=True)
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            y = self.inner(x)[0][:, -1]
            return self.head(y if float(y.sum()) > 1e9 else y.tanh())

    torch.manual_seed(0)
    module, data = Deciding(), (torch.randn(4, 5, 4), torch.randint(0, 3, (4,)))
    with pytest.raises(RuntimeError):
        diagonal_fisher(module, batches(data, 2), fallback="vmap")
    slow = SampleBySample(module, {}, lambda m, b: (m(b[0]), b[1]), 2, 100, "auto")
    monkeypatch.setattr(slow, "_on_accelerator", lambda parameters: True)
    slow.sums = {name: torch.zeros_like(value) for name, value in module.named_parameters()}
    parameters = dict(module.named_parameters())
    made = cotangents(module(data[0]).detach(), data[1], Labels("empirical"), torch.Generator())
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        slow.add(data, 4, made, parameters)
    assert "vmap is not possible (RuntimeError" in caplog.text
    assert set(slow.looped) == set(parameters)
    check_close({name: value / 4 for name, value in slow.sums.items()}, oracle(module, data, "empirical"))


def test_a_module_that_looks_at_the_shape_of_its_positions():
    """The copy of the positions for each sample would break it, so it is not made."""

    class Strict(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions, self.head = nn.Embedding(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            p = self.positions(torch.arange(x.shape[1]).unsqueeze(0))
            if p.shape[0] != 1:
                raise ValueError("unexpected")
            return self.head((x + p).tanh().sum(1))

    torch.manual_seed(0)
    module, data = Strict(), (torch.randn(5, 4, 6), torch.randint(0, 3, (5,)))
    check_close(diagonal_fisher(module, batches(data, 3)), oracle(module, data, "exact"))


def test_a_layer_that_is_used_otherwise_in_a_later_batch():
    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            y = torch.tanh(self.inner(x))
            return self.head(torch.tanh(self.inner(y)) if (x[:, 0] > 100).all() else y)

    torch.manual_seed(0)
    module, x = Moody(), torch.randn(6, 4)
    x[3:, 0] = 101
    x[3:] /= 50
    x[3:, 0] = 101
    data = (x, torch.randint(0, 3, (6,)))
    check_close(diagonal_fisher(module, batches(data, 3)), oracle(module, data, "exact"))
