"""BiC's two parameters against scipy's minimiser, and against a logistic regression by hand."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from lightning_cl.functional import fit_bias


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_minimum_that_scipy_finds(seed: int, ridge: float):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (60,), generator=generator)
    logits[torch.arange(60), labels] += 2
    new = torch.tensor([False, True, False, True, True])
    logits[:, new] = 2 * logits[:, new] + 4

    def objective(w: np.ndarray) -> float:
        q = logits.numpy().copy()
        q[:, new.numpy()] = w[0] * q[:, new.numpy()] + w[1]
        q -= q.max(1, keepdims=True)
        log_p = q - np.log(np.exp(q).sum(1, keepdims=True))
        return -log_p[np.arange(60), labels.numpy()].mean() + ridge / 2 * ((w[0] - 1) ** 2 + w[1] ** 2)

    found = minimize(
        objective, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
    )
    alpha, beta = fit_bias(logits, labels, new, ridge=ridge)
    assert (alpha, beta) == pytest.approx(tuple(found.x), abs=1e-5)
    assert alpha < 0.9


def test_no_bias_needs_no_correction_and_separable_samples_stay_finite():
    # every class's logit is the logarithm of its true probability
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    logits, labels = p.log().expand(10, 3), torch.tensor([0] * 5 + [1] * 3 + [2] * 2)
    assert fit_bias(logits, labels, torch.tensor([False, True, True])) == pytest.approx((1.0, 0.0), abs=1e-9)
    alpha, beta = fit_bias(torch.tensor([[5.0, -5.0], [-5.0, 5.0]]), torch.tensor([0, 1]), torch.tensor([False, True]))
    assert 1 < alpha < 5
    assert abs(beta) < 1e-3
    with pytest.raises(ValueError, match=r"0 samples.*HINT"):
        fit_bias(logits[:0], labels[:0], torch.tensor([False, True, True]))
