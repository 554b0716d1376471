"""The vectors of the exact Fisher of a softmax: factors of the covariance of the scores."""

import pytest
import torch
from torch import nn

from lightning_cl.functional._cotangents import Scores
from lightning_cl.functional.fisher import diagonal_fisher


def covariance(p: torch.Tensor) -> torch.Tensor:
    return torch.diag(p) - torch.outer(p, p)


@pytest.mark.parametrize(
    "p",
    [
        [0.2, 0.5, 0.3],
        [0.0, 0.4, 0.0, 0.6, 0.0],  # classes that are not active
        [1.0, 0.0, 0.0],
        [1 - 1e-12, 1e-12],
        [1e-300, 1.0, 1e-200],
    ],
)
def test_they_are_factors_of_the_covariance(p: list[float]):
    probabilities = torch.tensor([[p]], dtype=torch.float64)
    found = Scores(probabilities, torch.ones(1, 1, 1, dtype=torch.float64), torch.zeros(1, len(p), dtype=torch.float64))
    found.dtype = torch.float64
    vectors = torch.stack([found.vector(k)[0] for k in range(len(found))])
    assert len(found) <= max(1, sum(value > 0 for value in p) - 1)
    # the rounding of 1 - p is the expectation's, not ours
    torch.testing.assert_close(vectors.T @ vectors, covariance(probabilities[0, 0]), rtol=1e-9, atol=1e-15)


def test_nothing_is_lost_where_the_model_is_certain():
    """In single precision 1 - p is 0 there; the factors are products of positive numbers."""
    logits = torch.tensor([[25.0, 0.0, 1.0]])
    exact = logits.double().softmax(1)
    found = Scores(logits.softmax(1).unsqueeze(1), torch.ones(1, 1, 1), logits)
    squares = sum(found.vector(k)[0].double().square() for k in range(len(found)))
    torch.testing.assert_close(squares, exact[0] * (exact[0, [1, 0, 0]] + exact[0, [2, 2, 1]]), rtol=1e-5, atol=0.0)


def test_numbers_that_are_none_come_through():
    p = torch.full((2, 1, 3), float("nan"))
    found = Scores(p, torch.ones(2, 1, 1), torch.zeros(2, 3))
    assert any(found.vector(k).isnan().any() for k in range(len(found)))


@pytest.mark.parametrize("linear", [True, False])
def test_a_single_class_has_no_information(linear: bool):
    layer = nn.Linear(2, 1) if linear else nn.Sequential(nn.RNN(2, 1, batch_first=True))
    outputs = (lambda m, b: (m(b[0]), b[1])) if linear else (lambda m, b: (m[0](b[0].unsqueeze(1))[0][:, 0], b[1]))
    found = diagonal_fisher(layer, [(torch.rand(3, 2), torch.zeros(3, dtype=torch.long))], logits_fn=outputs)
    assert all(bool((value == 0).all()) for value in found.values())
