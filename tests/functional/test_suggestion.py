"""The first guess of lambda: by hand, and what it does not depend on."""

import pytest
import torch

from lightning_cl.functional.suggestion import suggest_lambda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_is_five_over_the_weighted_size(dtype: torch.dtype):
    importance = [torch.tensor([1.0, 0.5]), torch.tensor([[2.0]])]
    anchor = [torch.tensor([2.0, 4.0]), torch.tensor([[3.0]])]
    found = suggest_lambda([f.to(dtype) for f in importance], [a.to(dtype) for a in anchor])
    assert found is not None
    assert found.curvature == 1 * 4 + 0.5 * 16 + 2 * 9 == 30
    assert found.lambda_ == pytest.approx(5 / 30)


def test_a_saturated_fisher_is_taken_for_what_it_is():
    found = suggest_lambda([torch.tensor([1e-9])], [torch.tensor([1.0])])
    assert found is not None
    assert found.curvature == pytest.approx(1e-9)
    assert found.lambda_ == pytest.approx(5e4)


def test_the_penalty_does_not_change_with_the_scale_of_the_importance():
    importance, anchor = torch.rand(5, 3), torch.randn(5, 3)
    one, other = (suggest_lambda([scale * importance], [anchor]) for scale in (1.0, 1e-3))
    assert one is not None
    assert other is not None
    torch.testing.assert_close(one.lambda_ * importance, other.lambda_ * 1e-3 * importance)


@pytest.mark.parametrize(("importance", "anchor"), [(0.0, 1.0), (1.0, 0.0), (float("inf"), 1.0), (float("nan"), 1.0)])
def test_none_where_it_cannot_be_said(importance: float, anchor: float):
    assert suggest_lambda([torch.tensor([importance])], [torch.tensor([anchor])]) is None
    assert suggest_lambda([], []) is None
