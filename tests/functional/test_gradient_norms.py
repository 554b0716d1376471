"""Relative gradient norms against a loop in numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_cl.functional.gradient_norms import GroupNorms, relative_gradient_norms, relative_rates


def test_it_is_the_loop():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    named = dict(model.named_parameters())
    groups = {"stem": ["0.weight", "0.bias"], "head": ["2.weight", "2.bias"]}
    gradients = []
    for _ in range(3):
        loss = model(torch.randn(6, 4)).square().mean()
        gradients.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    found = relative_gradient_norms(iter(gradients), named, groups)
    for group, names in groups.items():
        flat = [np.concatenate([g[n].numpy().ravel() for n in names]).astype("float64") for g in gradients]
        weight = np.linalg.norm(np.concatenate([named[n].detach().numpy().ravel() for n in names]).astype("float64"))
        mean = np.mean([np.linalg.norm(f) for f in flat])
        assert found[group].gradient == pytest.approx(mean, rel=1e-12)
        assert found[group].weight == pytest.approx(weight, rel=1e-12)
        assert found[group].relative == pytest.approx(mean / weight, rel=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_scaling_the_loss_leaves_the_rates_as_they_are():
    weights, groups = {"a": torch.tensor([2.0]), "b": torch.tensor([1.0])}, {"x": ["a"], "y": ["b"]}
    one = [{"a": torch.tensor([4.0]), "b": torch.tensor([1.0])}]
    ten = [{name: 10 * g for name, g in one[0].items()}]
    rates = [relative_rates(relative_gradient_norms(g, weights, groups)) for g in (one, ten)]
    assert rates[0] == rates[1] == {"x": 1.0, "y": 0.5}


def test_what_the_loss_does_not_reach_and_weights_of_zero_count_for_nothing():
    weights = {"a": torch.ones(2), "b": torch.zeros(2), "c": torch.ones(1)}
    found = relative_gradient_norms([{"a": None, "b": torch.ones(2)}], weights, {name: [name] for name in weights})
    assert [found[name].relative for name in "abc"] == [0.0, 0.0, 0.0]
    assert relative_rates(found) == {"a": 0.0, "b": 0.0, "c": 0.0}


def test_sparse_gradients_count():
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 0]]), torch.tensor([[1.0, 2.0], [2.0, 2.0]]), (3, 2))
    found = relative_gradient_norms([{"e": sparse}], {"e": torch.ones(3, 2)}, {"e": ["e"]})
    assert found["e"] == GroupNorms(5.0, pytest.approx(6**0.5), pytest.approx(5 / 6**0.5))


def test_what_it_refuses():
    with pytest.raises(ValueError, match="no gradients; expected those of one batch at least"):
        relative_gradient_norms([], {"a": torch.ones(1)}, {"x": ["a"]})
    with pytest.raises(ValueError, match="no weights of 'b'"):
        relative_gradient_norms([{}], {"a": torch.ones(1)}, {"x": ["b"]})
    with pytest.raises(ValueError, match=r"gradient norm nan, weight norm 1\.0 of group 'x'"):
        relative_gradient_norms([{"a": torch.tensor([float("nan")])}], {"a": torch.ones(1)}, {"x": ["a"]})
