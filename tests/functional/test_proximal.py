"""The proximal step: a minimiser, stable, at rest where the gradient form is, and the same by every way through it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_cl.functional import _chunks
from lightning_cl.functional.proximal import Rate, proximal_step_

SHAPES = [(3, 4), (7,), (2, 3, 2, 2), ()]


def random(seed: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@settings(max_examples=60, deadline=None)
@given(
    theta=st.floats(-10, 10),
    anchor=st.floats(-10, 10),
    importance=st.floats(0, 100),
    lambda_=st.floats(0, 1e6),
    rate=st.floats(1e-6, 10),
)
def test_it_is_the_minimiser(theta: float, anchor: float, importance: float, lambda_: float, rate: float):
    x = torch.tensor([theta], dtype=torch.float64)
    proximal_step_([x], [torch.full_like(x, importance)], [torch.full_like(x, anchor)], lambda_, [rate])

    def objective(value: float) -> float:
        return (value - theta) ** 2 / (2 * rate) + lambda_ / 2 * importance * (value - anchor) ** 2

    at = float(x)
    # zero slope, which for a convex function is the minimum
    curvature = 1 / rate + lambda_ * importance
    slope = (at - theta) / rate + lambda_ * importance * (at - anchor)
    assert abs(slope) <= 1e-12 * curvature * max(1.0, abs(theta), abs(anchor))
    for step in (-1e-3, 1e-3):
        assert objective(at + step) >= objective(at)


@pytest.mark.parametrize("large", [3, 10**9])
@pytest.mark.parametrize("kind", ["number", "tensor", "lazy"])
def test_every_way_through_it_gives_the_formula(large: int, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_chunks, "LARGE", large)
    monkeypatch.setattr(_chunks, "CHUNK", 5)
    theta, importance, anchor, moment = (random(seed) for seed in range(4))
    dense = [1 / (3.0 * m.sqrt() + 0.25) if kind == "lazy" else m if kind == "tensor" else 0.3 for m in moment]
    rates = [Rate(m, 3.0, 0.25) for m in moment] if kind == "lazy" else dense
    expected = [
        (x + 7.0 * r * f * a) / (1 + 7.0 * r * f) for x, f, a, r in zip(theta, importance, anchor, dense, strict=True)
    ]
    proximal_step_(theta, importance, anchor, 7.0, rates)
    for x, wanted in zip(theta, expected, strict=True):
        torch.testing.assert_close(x, wanted)


def test_large_tensors_of_any_layout():
    f, x, a, v = (torch.rand(900, 700, generator=torch.Generator().manual_seed(seed)) for seed in range(4))
    expected = {}
    for rate in (0.1, Rate(v, 2.0, 0.5)):
        r = rate if isinstance(rate, float) else rate.dense()
        expected[rate] = (x + 10 * r * f * a) / (1 + 10 * r * f)
        for change in (lambda t: t, lambda t: t.t().contiguous().t()):
            mine = change(x.clone())
            proximal_step_([mine], [f], [a], 10.0, [rate])
            torch.testing.assert_close(mine, expected[rate])


@pytest.mark.parametrize("parameter", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("importance", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lazy", [False, True])
def test_any_mixture_of_dtypes_is_rounded_once(parameter: torch.dtype, importance: torch.dtype, lazy: bool):
    theta, f, anchor = random(0, parameter), random(1, importance), random(2, torch.float32)
    moment = random(3, parameter)
    rates = [Rate(m, 3.0, 0.25) for m in moment] if lazy else [0.3] * len(theta)
    dense = [1 / (3.0 * m.double().sqrt() + 0.25) if lazy else 0.3 for m in moment]
    expected = [
        (x.double() + 7.0 * r * g.double() * a.double()) / (1 + 7.0 * r * g.double())
        for x, g, a, r in zip(theta, f, anchor, dense, strict=True)
    ]
    proximal_step_(theta, f, anchor, 7.0, rates)
    for x, wanted in zip(theta, expected, strict=True):
        assert x.dtype == parameter
        unit = max(torch.finfo(parameter).eps, torch.finfo(torch.float32).eps)
        assert float((x.double() - wanted).abs().max()) <= 2 * unit


@pytest.mark.parametrize("lambda_", [1e13, 1e30, 1e300, 1e-300, 1e-13])
@pytest.mark.parametrize("large", [3, 10**9])
def test_nothing_overflows(lambda_: float, large: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_chunks, "LARGE", large)
    values = torch.tensor([0.0, 1e-45, 1e-30, 1e-6, 1.0, 1e20, 1e38])
    importance, moment = (part.flatten() for part in torch.meshgrid(values, values, indexing="ij"))
    for rate in (1e-30, 1e-3, 1e6, moment, Rate(moment, 1e3, 1e-5), Rate(moment, 1e30, 0.0)):
        theta, anchor = torch.full_like(importance, 3.0), torch.full_like(importance, -2.0)
        proximal_step_([theta], [importance], [anchor], lambda_, [rate])
        assert bool(((theta >= -2) & (theta <= 3)).all()), "a weighted mean, and not NaN"
        assert bool((theta[importance == 0] == 3).all()), "what does not matter stays, bit for bit"
        if isinstance(rate, float) and rate >= 1e-3 and lambda_ >= 1e13:
            assert bool((theta[importance >= 1] == -2).all()), "what matters is at its anchor, exactly"
            theta = torch.tensor([3.0])
            proximal_step_([theta], [torch.tensor([math.inf])], [torch.tensor([-2.0])], lambda_, [rate])
            assert float(theta) == -2


def test_zeros_and_no_step_at_all():
    theta = torch.tensor([1.0, 2.0])
    for lambda_, rate in ((0.0, 0.1), (1e9, 0.0), (0.0, torch.ones(2))):
        proximal_step_([theta], [torch.ones(2)], [torch.zeros(2)], lambda_, [rate])
        assert torch.equal(theta, torch.tensor([1.0, 2.0]))
    proximal_step_([], [], [], 1.0, [])


def test_lengths_that_differ_are_refused():
    x = torch.zeros(1)
    with pytest.raises(ValueError, match=r"lengths \[1, 1, 0, 1\]; expected equal lengths. HINT: leave out"):
        proximal_step_([x], [x], [], 1.0, [0.1])
