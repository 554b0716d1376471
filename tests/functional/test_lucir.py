"""LUCIR's losses against plain loops in float64 and cases worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cl.functional.lucir import less_forget_loss, margin_ranking_loss


def draws(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_less_forget_is_one_minus_the_cosine_and_ignores_lengths():
    new, old = draws(7, 5), draws(9, 5)[2:]
    expected = sum(1 - cosine(a, b) for a, b in zip(new.tolist(), old.tolist(), strict=True)) / 7
    assert float(less_forget_loss(new, old)) == pytest.approx(expected, abs=1e-12)
    assert float(less_forget_loss(3 * new, 0.1 * old)) == pytest.approx(expected, abs=1e-12)
    assert float(less_forget_loss(new, new)) == pytest.approx(0, abs=1e-12)
    assert float(less_forget_loss(new, -new)) == pytest.approx(2, abs=1e-12)
    assert torch.autograd.gradcheck(less_forget_loss, (new, old.detach()))


def test_less_forget_has_no_gradient_along_the_feature_and_survives_zeros():
    new = draws(4, 3)
    (gradient,) = torch.autograd.grad(less_forget_loss(new, draws(6, 3)[2:]), new)
    torch.testing.assert_close((gradient * new).sum(1), torch.zeros(4, dtype=torch.float64))
    zero = torch.zeros(2, 3, requires_grad=True)
    loss = less_forget_loss(zero, torch.ones(2, 3))
    loss.backward()
    assert float(loss) == 1
    assert bool(zero.grad.isfinite().all())  # type: ignore[union-attr]


def plain_ranking(s: list[list[float]], y: list[int], old: list[int], new: list[int], m: float, k: int) -> float:
    terms = []
    for row, label in zip(s, y, strict=True):
        if label in old:
            hardest = sorted((row[c] for c in new), reverse=True)[:k]
            terms.append(sum(max(m - row[label] + other, 0) for other in hardest))
    return sum(terms) / len(terms) if terms else 0.0


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize(("old", "new"), [([0, 1, 2], [3, 4, 5]), ([1, 5], [0, 2, 3, 4])])
def test_margin_ranking_against_a_plain_loop(k: int, old: list[int], new: list[int]):
    similarities = draws(20, 6).tanh().detach().requires_grad_()
    y = torch.arange(20) % 6
    loss = margin_ranking_loss(similarities, y, torch.tensor(old), torch.tensor(new), 0.5, k)
    assert float(loss) == pytest.approx(plain_ranking(similarities.tolist(), y.tolist(), old, new, 0.5, k), abs=1e-12)
    assert torch.autograd.gradcheck(
        lambda s: margin_ranking_loss(s, y, torch.tensor(old), torch.tensor(new), 0.5, k), (similarities,)
    )


def test_margin_ranking_by_hand():
    similarities = torch.tensor([[0.9, 0.1, 0.6, 0.5], [0.2, 0.3, 0.9, 0.9]])
    old, new = torch.tensor([0, 1]), torch.tensor([2, 3])
    # 0.5 - 0.9 + 0.6, 0.5 - 0.9 + 0.5; the second sample is of a new class
    loss = margin_ranking_loss(similarities, torch.tensor([0, 2]), old, new)
    assert float(loss) == pytest.approx(0.2 + 0.1)
    none = margin_ranking_loss(similarities.requires_grad_(), torch.tensor([2, 3]), old, new)
    none.backward()
    assert float(none) == 0
    assert bool((similarities.grad == 0).all())  # type: ignore[union-attr]


def test_half_precision_is_computed_in_fp32():
    features = draws(8, 16).detach().bfloat16()
    assert less_forget_loss(features, features).dtype == torch.float32
    loss = margin_ranking_loss(features, torch.zeros(8).long(), torch.tensor([0]), torch.tensor([1, 2]))
    assert loss.dtype == torch.float32


def test_refusal():
    with pytest.raises(ValueError, match=r"features \(2, 3\) and old_features \(2, 4\); expected equal shapes. HINT:"):
        less_forget_loss(torch.zeros(2, 3), torch.zeros(2, 4))
