"""Kronecker factors against loops over samples, positions and labels in float64."""

import copy
import logging

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cl.functional import diagonal_fisher, kronecker_factors, kronecker_fisher
from tests.functional.fisher_cases import CASES, batches, made


def net(build, shape, n=6, classes=3):
    module, data = made(build, shape, classes, n)
    return module.double(), (data[0].double(), data[1])


def cotangent_labels(p, labels, y):
    """Labels with their weights."""
    if labels == "exact":
        return list(enumerate(p.tolist()))
    return [(int(y) if labels == "empirical" else int(p.argmax()), 1.0)]


def loop(module, layer, data, labels, columns):
    """A and G by one sample, one label and one position at a time; ``columns(input, output)`` lists the positions."""
    seen = {}

    def hook(part, args, output):
        output.retain_grad()
        seen["in"], seen["out"] = args[0], output

    handle = layer.register_forward_hook(hook)
    x, y = data
    a_sum, g_sum, count = 0, 0, 0
    for i in range(len(y)):
        p = module(x[i : i + 1]).detach().softmax(1)[0]
        for label, weight in cotangent_labels(p, labels, y[i]):
            F.cross_entropy(module(x[i : i + 1]), torch.tensor([label])).backward()
            inputs, gradients = columns(seen["in"].detach(), seen["out"].grad)
            for g in gradients:
                g_sum = g_sum + weight * torch.outer(g, g)
        for a in inputs:
            if layer.bias is not None:
                a = torch.cat([torch.ones(1, dtype=a.dtype), a])
            a_sum, count = a_sum + torch.outer(a, a), count + 1
    handle.remove()
    return a_sum / count, g_sum / len(y)


def rows(inputs, gradient):
    return inputs.flatten(0, -2), gradient.flatten(0, -2)


def patches(layer):
    def columns(inputs, gradient):
        padded = F.pad(inputs, [layer.padding[1]] * 2 + [layer.padding[0]] * 2)[0]
        out, (kh, kw), (sh, sw), (dh, dw) = [], layer.kernel_size, layer.stride, layer.dilation
        for i in range(gradient.shape[2]):
            for j in range(gradient.shape[3]):
                rows_ = slice(i * sh, i * sh + dh * (kh - 1) + 1, dh)
                cols = slice(j * sw, j * sw + dw * (kw - 1) + 1, dw)
                out.append(padded[:, rows_, cols].reshape(-1))
        return out, gradient[0].flatten(1).T

    return columns


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(x)).mean(1))


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
def test_linear_layers_equal_the_loop(labels):
    module, data = net(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3)), (4,)
    )
    factors = kronecker_factors(module, batches(data, 4), labels=labels)
    assert list(factors) == ["0.weight", "2.weight", "4.weight"]
    for name, part in (("0.weight", module[0]), ("2.weight", module[2]), ("4.weight", module[4])):
        a, g = loop(module, part, data, labels, rows)
        torch.testing.assert_close(factors[name].A, a, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(factors[name].G, g, rtol=1e-9, atol=1e-12)
    assert factors["0.weight"].layer.bias == "0.bias"
    assert factors["2.weight"].layer.bias is None


def test_tokens_are_averaged_in_the_inputs_and_summed_in_the_gradients():
    module, data = net(Tokens, (7, 4))
    factors = kronecker_factors(module, batches(data, 4))
    for name, part in (("inner.weight", module.inner), ("head.weight", module.head)):
        a, g = loop(module, part, data, "exact", rows)
        torch.testing.assert_close(factors[name].A, a, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(factors[name].G, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("max_bytes", [2**24, 1])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "bias": False},
        {"kernel_size": 2, "stride": 2, "padding": 1},
    ],
)
def test_convolutions_equal_the_loop(options, max_bytes):
    def build():
        conv = nn.Conv2d(2, 4, **options)
        return nn.Sequential(conv, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))

    module, data = net(build, (2, 6, 5), n=4)
    factors = kronecker_factors(module, batches(data, 3), max_bytes=max_bytes)
    reference = copy.deepcopy(module)
    reference[1] = nn.ReLU()
    a, g = loop(reference, reference[0], data, "exact", patches(reference[0]))
    torch.testing.assert_close(factors["0.weight"].A, a, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(factors["0.weight"].G, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("d", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_with_one_location_a_convolution_is_the_linear_layer_of_its_input(d, bias):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[d - 1]
    module, data = net(lambda: nn.Sequential(kind(2, 4, 3, bias=bias), nn.Flatten()), (2, *[3] * d), classes=4)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(2 * 3**d, 4, bias=bias)).double()
    with torch.no_grad():
        linear[1].weight.copy_(module[0].weight.flatten(1))
        if bias:
            linear[1].bias.copy_(module[0].bias)
    conv = kronecker_factors(module, batches(data, 4))["0.weight"]
    flat = kronecker_factors(linear, batches(data, 4))["1.weight"]
    torch.testing.assert_close(conv.A, flat.A)
    torch.testing.assert_close(conv.G, flat.G)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_of_one_sample_the_product_is_the_exact_fisher_block(bias, labels):
    module, (x, y) = net(lambda: nn.Sequential(nn.Linear(4, 3, bias=bias)), (4,), n=1)
    factors = kronecker_factors(module, [(x, y)], labels=labels)["0.weight"]
    p = module(x).detach().softmax(1)[0]
    block = 0
    for label, weight in cotangent_labels(p, labels, y[0]):
        grads = torch.autograd.grad(F.cross_entropy(module(x), torch.tensor([label])), list(module.parameters()))
        matrix = torch.cat([grads[1][:, None], grads[0]], 1) if bias else grads[0]
        stacked = matrix.T.flatten()
        block = block + weight * torch.outer(stacked, stacked)
    torch.testing.assert_close(torch.kron(factors.A, factors.G), block, rtol=1e-9, atol=1e-12)


def test_the_diagonal_of_the_product_has_the_scale_of_the_diagonal_fisher():
    """Where inputs and gradients are independent, up to sampling noise: a linear model at weights of zero."""
    module, data = net(lambda: nn.Sequential(nn.Linear(3, 3)), (3,), n=50)
    with torch.no_grad():
        [parameter.zero_() for parameter in module.parameters()]
    factors = kronecker_factors(module, batches(data, 50))["0.weight"]
    fisher = diagonal_fisher(module, batches(data, 50))
    product = torch.outer(factors.G.diagonal(), factors.A.diagonal())
    torch.testing.assert_close(product, torch.cat([fisher["0.bias"][:, None], fisher["0.weight"]], 1))


def test_the_batch_size_does_not_matter_and_seeds_do():
    module, data = net(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), (4,), n=32)
    for options in ({}, {"labels": "mc", "n_draws": 2, "n_samples": 9}):
        one, other = (kronecker_factors(module, Sized(batches(data, size)), **options) for size in (5, 32))
        for name in one:
            torch.testing.assert_close(one[name].A, other[name].A)
            torch.testing.assert_close(one[name].G, other[name].G)
    drawn = [kronecker_factors(module, batches(data, 8), labels="mc", seed=seed)["0.weight"].G for seed in (0, 0, 1)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


class Sized(list):
    """Batches that say how many samples there are."""

    @property
    def dataset(self):
        return range(sum(len(y) for _, y in self))


@pytest.mark.parametrize("labels", ["exact", "mc"])
def test_the_rest_has_its_diagonal_fisher(labels, caplog):
    module, data = CASES["token model"]()
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        factors, diagonal = kronecker_fisher(module, batches(data, 4), labels=labels)
    assert list(factors) == ["head.weight"]
    expected = diagonal_fisher(module, batches(data, 4), labels=labels)
    assert sorted(diagonal) == ["embedding.weight", "norm.bias", "norm.weight"]
    for name, value in diagonal.items():
        torch.testing.assert_close(value, expected[name])
    text = caplog.records[0].getMessage()
    assert "for 1 layers; diagonal: embedding.weight, norm.weight, norm.bias; nothing: none" in text
    assert kronecker_fisher(module, batches(data, 4), rest="none")[1] == {}


@pytest.mark.parametrize(
    ("case", "layers"),
    [
        ("tied", ["head.weight"]),
        ("called twice", ["head.weight"]),
        ("functional use", ["head.weight"]),
        ("weight norm", ["head.weight"]),
        ("samples second", ["inner.weight", "head.weight"]),
    ],
)
def test_weights_that_are_used_more_than_once_are_left_to_the_diagonal(case, layers):
    module, data = CASES[case]()
    factors, diagonal = kronecker_fisher(module, batches(data, 4))
    assert list(factors) == layers
    taken = {name for block in factors.values() for name in block.layer.names}
    assert taken.isdisjoint(diagonal)
    assert taken | set(diagonal) == {name for name, _ in module.named_parameters()}


def test_grouped_convolutions_and_norms_are_left_to_the_diagonal():
    module, data = CASES["convolutions"]()
    factors, diagonal = kronecker_fisher(module, batches(data, 4))
    assert list(factors) == ["3.weight", "6.weight", "8.weight", "12.weight"]
    assert {"0.weight", "0.bias", "1.weight", "1.bias", "7.weight"} <= set(diagonal)


class MixedUp(nn.Module):
    """Samples share information before the second layer."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        return self.head(hidden + hidden.mean(0) / 2)


def test_layers_in_which_samples_mix_are_left_to_the_diagonal():
    module, data = made(MixedUp, (5,), 3, 6)
    factors, diagonal = kronecker_fisher(module, batches(data, 3))
    assert list(factors) == ["head.weight"]
    assert set(diagonal) == {"first.weight", "first.bias"}
    with pytest.raises(ValueError, match=r"\['first.weight'\] in which samples mix, after a batch of one; .*HINT"):
        kronecker_factors(module, [*batches(data, 1)[:1], *batches(data, 3)])


class Changing(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head, self.twice = nn.Linear(5, 5), nn.Linear(5, 3), False

    def forward(self, x):
        x = torch.tanh(self.first(x))
        if self.twice:
            x = self.first(x)
        self.twice = True
        return self.head(x)


def test_a_weight_that_is_used_differently_later_is_refused():
    module, data = made(Changing, (5,), 3, 6)
    with pytest.raises(ValueError, match=r"weight 'first.weight' that is used in another way .*; expected .* HINT"):
        kronecker_factors(module, batches(data, 3))


def test_transposed_weights_and_layers_by_name():
    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.b, self.head = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5)), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(torch.tanh(torch.addmm(self.b, x, self.w)))

    module, data = net(Transposed, (4,))
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), module.head).double()
    with torch.no_grad():
        plain[0].weight.copy_(module.w.T)
        plain[0].bias.copy_(module.b)
    found, expected = kronecker_factors(module, batches(data, 6)), kronecker_factors(plain, batches(data, 6))
    assert found["w"].layer.transposed
    torch.testing.assert_close(found["w"].A, expected["0.weight"].A)
    torch.testing.assert_close(found["w"].G, expected["0.weight"].G)
    factors, diagonal = kronecker_fisher(module, batches(data, 6), layers=["w"])
    assert list(factors) == ["w"]
    assert set(diagonal) == {"head.weight", "head.bias"}
    # a bias that is not asked for has no coordinate
    only = {name: value for name, value in module.named_parameters() if name != "b"}
    assert kronecker_factors(module, batches(data, 6), parameters=only)["w"].A.shape == (4, 4)


def test_nothing_of_the_module_is_changed_and_unused_parameters_have_no_result(caplog):
    module = nn.ModuleDict({"used": nn.Linear(4, 3), "other": nn.Linear(4, 3), "drop": nn.Dropout(0.5)})
    module["drop"].eval()

    def logits_fn(module, batch):
        return module["drop"](module["used"](batch[0])), batch[1]

    _, data = made(lambda: nn.Linear(4, 3), (4,), 3, 6)
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        factors, diagonal = kronecker_fisher(module, batches(data, 3), logits_fn=logits_fn)
    assert "diagonal: none; nothing: other.weight, other.bias" in caplog.records[0].getMessage()
    assert list(factors) == ["used.weight"]
    assert diagonal == {}
    assert [part.training for part in module.children()] == [True, True, False]
    assert all(parameter.grad is None for parameter in module.parameters())


def test_bad_input_is_refused():
    module, data = made(lambda: nn.Sequential(nn.Linear(4, 3)), (4,), 3, 6)
    for options, message in (
        ({"labels": "batch_mean"}, r"labels='batch_mean'; expected labels of single samples. HINT: empirical"),
        ({"labels": "true"}, r"labels='true'; expected one of exact"),
        ({"rest": "all"}, r"rest='all'; expected 'diagonal' or 'none'. HINT: leave it out"),
        ({"n_samples": 0}, r"n_samples=0; expected an integer >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            kronecker_fisher(module, batches(data, 3), **options)
    with pytest.raises(ValueError, match=r"loader gave no samples; expected at least one. HINT"):
        kronecker_factors(module, [])
    with torch.no_grad():
        module[0].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"of '0.weight' is not finite; expected finite numbers. HINT: look for NaN"):
        kronecker_factors(module, batches(data, 3))
