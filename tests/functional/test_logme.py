"""LogME against a direct maximisation of the evidence, and what it has to be invariant to."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from lightning_cl.functional.logme import logme


def direct(features: np.ndarray, labels: np.ndarray, basis: np.ndarray | None = None) -> float:
    """The density of y under N(0, I / beta + F F' / alpha), maximised by scipy, averaged over classes; float64."""
    found = []
    basis = np.eye(len(labels)) if basis is None else basis
    features = basis.T @ features
    for label in np.unique(labels):
        y = basis.T @ (labels == label).astype("float64")

        def negative(logs: np.ndarray, y: np.ndarray = y) -> float:
            alpha, beta = np.exp(logs)
            covariance = np.eye(len(y)) / beta + features @ features.T / alpha
            return -float(multivariate_normal.logpdf(y, cov=covariance)) / len(y)

        starts = [(0.0, 0.0), (3.0, 3.0), (-2.0, 2.0)]
        options = {"xatol": 1e-9, "fatol": 1e-13, "maxiter": 4000}
        best = min(minimize(negative, s, method="Nelder-Mead", options=options).fun for s in starts)
        found.append(-best)
    return float(np.mean(found))


def problem(n: int, d: int, seed: int, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, d, generator=rng, dtype=torch.float64)
    return centres[labels] + torch.randn(n, d, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize(("n", "d"), [(40, 3), (40, 12), (25, 60)])
def test_it_is_the_maximum_of_the_evidence(n: int, d: int):
    features, labels = problem(n, d, seed=n + d)
    assert logme(features, labels) == pytest.approx(direct(features.numpy(), labels.numpy()), abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(40, 3), (25, 60)])
def test_an_intercept_with_a_flat_prior(n: int, d: int):
    """What is left when the constant is integrated out: the samples in a basis without the direction of all ones."""
    features, labels = problem(n, d, seed=n + d)
    ones = np.hstack([np.ones((n, 1)), np.eye(n)[:, 1:]])
    expected = direct(features.numpy(), labels.numpy(), np.linalg.qr(ones)[0][:, 1:])
    assert logme(features, labels, intercept=True) == pytest.approx(expected, abs=1e-6)
    assert logme(features + 100, labels, intercept=True) == pytest.approx(expected, abs=1e-6)
    assert abs(logme(features + 100, labels) - logme(features, labels)) > 1e-3


def test_features_of_lower_rank_and_of_any_scale_make_no_difference():
    features, labels = problem(50, 6, seed=1)
    doubled = torch.cat([features, features], dim=1)
    assert logme(doubled, labels) == pytest.approx(direct(doubled.numpy(), labels.numpy()), abs=1e-6)
    assert logme(1e-3 * features, labels) == pytest.approx(logme(features, labels), abs=1e-8)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    assert logme(features @ rotation, labels) == pytest.approx(logme(features, labels), abs=1e-8)


def test_the_order_of_samples_and_the_names_of_classes_make_no_difference():
    features, labels = problem(60, 8, seed=2)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(3))
    assert logme(features[order], labels[order]) == pytest.approx(logme(features, labels), abs=1e-9)
    assert logme(features, 7 * labels + 2) == pytest.approx(logme(features, labels), abs=1e-9)


def test_better_features_score_higher():
    features, labels = problem(300, 10, seed=4)
    rng = torch.Generator().manual_seed(5)
    scores = [logme(features + noise * torch.randn(300, 10, generator=rng), labels) for noise in (0.0, 2.0, 10.0)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > scores[-1] + 0.1


def test_labels_that_features_fit_exactly_have_a_finite_score():
    labels = torch.arange(20) % 2
    assert np.isfinite(logme(torch.nn.functional.one_hot(labels).float(), labels))


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.ones(4), torch.zeros(4), r"features \(4,\), labels \(4,\); expected \(N, D\) and \(N,\)"),
        (torch.ones(4, 2), torch.zeros(4, dtype=torch.long), "1 class in 4 labels; expected two at least"),
        (torch.zeros(4, 2), torch.arange(4), "not finite, or all the same"),
        (torch.full((4, 2), float("nan")), torch.arange(4), "not finite, or all the same"),
    ],
)
def test_what_it_refuses(features: torch.Tensor, labels: torch.Tensor, message: str):
    with pytest.raises(ValueError, match=message):
        logme(features, labels)
