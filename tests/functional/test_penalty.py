import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cl.functional import _chunks
from lightning_cl.functional.penalty import (
    add_quadratic_gradient_,
    merge_offline,
    merge_online,
    pad_to,
    quadratic_penalty,
)


def tensors(seed, shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {str(i): torch.rand(shape, generator=generator, dtype=dtype) for i, shape in enumerate(shapes)}


SHAPES = [(3, 4), (7,), (2, 3, 2, 2), ()]


@pytest.mark.parametrize("large", [10, 10**9])
def test_gradient_is_autograds(large, monkeypatch):
    monkeypatch.setattr(_chunks, "LARGE", large)
    monkeypatch.setattr(_chunks, "CHUNK", 5)
    theta, fisher, anchor, grads = (tensors(seed, SHAPES) for seed in range(4))
    expected = {name: value.clone() for name, value in grads.items()}
    for value in theta.values():
        value.requires_grad_()
    value = quadratic_penalty(theta, fisher, anchor, 3.0)
    for name, gradient in zip(theta, torch.autograd.grad(value, list(theta.values())), strict=True):
        expected[name] += gradient
    add_quadratic_gradient_(*(list(part.values()) for part in (theta, grads, fisher, anchor)), 3.0)
    for name in theta:
        torch.testing.assert_close(grads[name], expected[name])


def test_large_and_non_contiguous_tensors():
    theta, fisher, anchor, grad = (torch.rand(900, 700, generator=torch.Generator().manual_seed(s)) for s in range(4))
    expected = grad + 2.0 * fisher * (theta - anchor)
    for change in (lambda t: t, lambda t: t.t().contiguous().t()):
        mine = change(grad.clone())
        add_quadratic_gradient_([theta], [mine], [fisher], [anchor], 2.0)
        torch.testing.assert_close(mine, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    theta, fisher, anchor, grad = (torch.rand(50, generator=torch.Generator().manual_seed(s)) for s in range(4))
    theta, grad, fisher = theta.to(dtype), grad.to(dtype), fisher.bfloat16()
    expected = (grad.double() + 2.0 * fisher.double() * (theta.double() - anchor.double())).to(dtype)
    add_quadratic_gradient_([theta], [grad], [fisher], [anchor], 2.0)
    assert grad.dtype == dtype
    torch.testing.assert_close(grad, expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_small_difference_survives_half_precision():
    # theta - anchor is far below a bf16 step of theta
    theta, anchor = torch.ones(3, dtype=torch.bfloat16), torch.full((3,), 1 + 2.0**-12)
    grad = torch.zeros(3, dtype=torch.bfloat16)
    add_quadratic_gradient_([theta], [grad], [torch.ones(3)], [anchor], 1.0)
    assert (grad == -(2.0**-12)).all()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match=r"lengths \[1, 0, 1, 1\]; expected equal lengths.*HINT"):
        add_quadratic_gradient_([torch.ones(1)], [], [torch.ones(1)], [torch.ones(1)], 1.0)


def test_nothing_to_penalise():
    add_quadratic_gradient_([], [], [], [], 1.0)
    assert quadratic_penalty({"w": torch.ones(2)}, {}, {}, 1.0) == 0


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), n_tasks=st.integers(1, 6), zeros=st.booleans())
def test_offline_merge_is_the_sum_of_separate_penalties(seed, n_tasks, zeros):
    merged, centre, terms = {}, {}, []
    for task in range(n_tasks):
        fisher, theta = tensors(seed + 2 * task, SHAPES), tensors(seed + 2 * task + 1, SHAPES)
        if zeros:
            fisher = {name: value * (value > 0.5) for name, value in fisher.items()}
        merged, centre = merge_offline(merged, centre, fisher, theta)
        terms.append((fisher, theta))
    point = tensors(seed + 999, SHAPES)
    for value in point.values():
        value.requires_grad_()
    separate = sum(quadratic_penalty(point, fisher, theta, 2.0) for fisher, theta in terms)
    expected = torch.autograd.grad(separate, list(point.values()))
    grads = [torch.zeros_like(value) for value in point.values()]
    add_quadratic_gradient_(list(point.values()), grads, list(merged.values()), list(centre.values()), 2.0)
    for mine, oracle in zip(grads, expected, strict=True):
        torch.testing.assert_close(mine, oracle, rtol=1e-10, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0, 1))
def test_online_merge(seed, gamma):
    merged, centre, expected = {}, {}, torch.zeros(3, 4, dtype=torch.float64)
    for task in range(4):
        fisher, theta = tensors(seed + 2 * task, SHAPES), tensors(seed + 2 * task + 1, SHAPES)
        merged, centre = merge_online(merged, centre, fisher, theta, gamma)
        expected = gamma * expected + fisher["0"]
        torch.testing.assert_close(merged["0"], expected)
        assert centre["0"].equal(theta["0"])
        assert centre["0"].data_ptr() != theta["0"].data_ptr()


@pytest.mark.parametrize("merge", [merge_offline, merge_online])
def test_grown_and_frozen_parameters(merge):
    old = {"head": torch.ones(2, 3), "frozen": torch.ones(2)}
    anchor = {"head": torch.zeros(2, 3), "frozen": torch.full((2,), 7.0)}
    theta = {"head": torch.full((4, 3), 2.0)}
    merged, centre = merge(old, anchor, {"head": torch.ones(4, 3)}, theta)
    assert merged["head"].equal(torch.tensor([[2.0] * 3] * 2 + [[1.0] * 3] * 2))
    assert (centre["head"][2:] == 2).all()
    assert merged["frozen"].equal(old["frozen"])
    assert centre["frozen"].equal(anchor["frozen"])


def test_anchors_are_copies_of_at_least_fp32():
    theta = {"w": torch.ones(3, dtype=torch.bfloat16)}
    for merge in (merge_offline, merge_online):
        _, anchor = merge({}, {}, {"w": torch.zeros(3)}, theta)
        assert anchor["w"].dtype == torch.float32
    theta = {"w": torch.ones(3)}
    _, anchor = merge_offline({}, {}, {"w": torch.tensor([0.0, 1.0, 2.0])}, theta)
    theta["w"].add_(1)
    assert (anchor["w"] == 1).all()


def test_importance_without_a_parameter():
    for merge in (merge_offline, merge_online):
        with pytest.raises(ValueError, match=r"new importance of 'w' without a parameter; expected.*HINT"):
            merge({}, {}, {"w": torch.ones(2)}, {})


def test_gamma_out_of_range():
    with pytest.raises(ValueError, match=r"gamma=1.5; expected a number in \[0, 1\].*HINT"):
        merge_online({}, {}, {}, {}, gamma=1.5)


def test_pad_to():
    grown = pad_to(torch.ones(2, 3), (4, 3))
    assert grown[:2].equal(torch.ones(2, 3))
    assert (grown[2:] == 0).all()
    for shape in ((1, 3), (2, 3, 1)):
        with pytest.raises(ValueError, match=r"expected 2 dimensions.*HINT"):
            pad_to(torch.ones(2, 3), shape)
