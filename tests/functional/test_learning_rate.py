"""The rate read from a range test, on curves whose steepest point is known."""

import math

import pytest

from lightning_cl.functional import steepest_learning_rate

RATES = [10 ** (-8 + 8 * i / 99) for i in range(100)]


def sigmoid_curve(center: float, noise: float = 0.0) -> list[float]:
    """Falls fastest at ``center``; jitter that is the same at every rate."""
    jitter = [noise * math.sin(37.0 * i) for i in range(100)]
    return [2 - 1 / (1 + math.exp(-3 * math.log(rate / center))) + j for rate, j in zip(RATES, jitter, strict=True)]


@pytest.mark.parametrize("center", [1e-5, 1e-3, 3e-2])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_the_steepest_point_is_found(center: float, noise: float):
    found = steepest_learning_rate(RATES, sigmoid_curve(center, noise))
    assert found is not None
    assert center / 1.6 < found < center * 1.6


def test_the_derivative_over_the_rate_itself_would_find_noise():
    import torch

    losses = sigmoid_curve(1e-3, noise=1e-3)
    slopes = torch.gradient(torch.tensor(losses[10:-1]), spacing=[torch.tensor(RATES[10:-1])])[0]
    assert RATES[10 + int(slopes.argmin())] < 1e-6


def test_what_is_not_finite_is_left_out():
    losses = sigmoid_curve(1e-3)
    losses[20], losses[70] = float("nan"), float("inf")
    assert steepest_learning_rate(RATES, losses) == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("losses", [[1.0] * 100, [float(i) for i in range(100)], [float("nan")] * 100])
def test_no_rate_where_nothing_falls(losses: list[float]):
    assert steepest_learning_rate(RATES, losses) is None


def test_too_few_points():
    assert steepest_learning_rate(RATES[:12], sigmoid_curve(1e-3)[:12]) is None
