import math

import pytest
import torch
import torch.nn.functional as F

from lightning_cl.functional import distillation_loss, logit_mse


def test_a_case_worked_by_hand():
    # T = 1: p = (3/4, 1/4), q = (1/2, 1/2)
    logits, targets = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert distillation_loss(logits, targets, 1.0).item() == pytest.approx(math.log(2))
    # T = 2: p = (sqrt 3, 1) / (1 + sqrt 3), whatever it is: q stays uniform
    assert distillation_loss(logits, targets, 2.0, scale_by_T2=True).item() == pytest.approx(4 * math.log(2))


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4), (2, 5, 3, 2)])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradient_and_value_of_the_kullback_leibler_divergence(
    shape: tuple[int, ...], temperature: float, scaled: bool
):
    torch.manual_seed(0)
    z, t = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    loss = distillation_loss(z, t, temperature, scale_by_T2=scaled)
    total = torch.zeros((), dtype=torch.float64)
    rows = z.movedim(1, -1).reshape(-1, 5), t.movedim(1, -1).reshape(-1, 5)
    for z_row, t_row in zip(*rows, strict=True):
        p, q = (t_row / temperature).softmax(0), (z_row / temperature).softmax(0)
        total = total + sum(p[c] * (p[c].log() - q[c].log()) for c in range(5)) / len(rows[0])
    total = total * (temperature**2 if scaled else 1)
    torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (loss, total)))
    p = (rows[1] / temperature).softmax(1)
    entropy = -(p * p.log()).sum(1).mean() * (temperature**2 if scaled else 1)
    torch.testing.assert_close(loss, total + entropy)


def test_new_classes_have_the_target_zero():
    torch.manual_seed(0)
    z, t = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    p = torch.cat([(t / 2).softmax(1), torch.zeros(6, 2, dtype=torch.float64)], 1)
    torch.testing.assert_close(distillation_loss(z, t), F.cross_entropy(z / 2, p))
    with pytest.raises(ValueError, match=r"logits \(6, 3\) and targets \(6, 5\); expected .* HINT: give the logits of"):
        distillation_loss(t, z)
    with pytest.raises(ValueError, match=r"logits \(5, 5\) and targets \(6, 3\); expected"):
        distillation_loss(z[:5], t)


def test_half_precision_is_computed_in_fp32_and_masked_classes_stay_finite():
    z, t = torch.tensor([[1.0, 2.0, -1e30]]), torch.tensor([[0.5, 0.0, -1e30]])
    assert distillation_loss(z, t).item() == pytest.approx(distillation_loss(z[:, :2], t[:, :2]).item())
    low = distillation_loss(z[:, :2].half(), t[:, :2].half())
    assert (low.dtype, low.item()) == (torch.float32, pytest.approx(distillation_loss(z[:, :2], t[:, :2]).item()))


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4)])
def test_equal_widths_are_mse_loss(shape: tuple[int, ...]):
    torch.manual_seed(0)
    now, then = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    widths = torch.full((shape[0],), 5)
    torch.testing.assert_close(logit_mse(now, then, widths), F.mse_loss(now, then))
    grown = torch.cat([now, torch.full_like(now[:, :2], 9.0)], 1)
    torch.testing.assert_close(logit_mse(grown, then, widths), F.mse_loss(now, then))


def test_unequal_widths_by_hand_and_masked_logits_count_for_nothing():
    now = torch.tensor([[1.0, 2.0, 3.0], [1.0, -1e30, float("-inf")]], requires_grad=True)
    then = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, float("-inf")]])
    loss = logit_mse(now, then, torch.tensor([2, 3]))
    assert loss.item() == pytest.approx((1 + 4 + 4) / 3)
    loss.backward()
    torch.testing.assert_close(now.grad, torch.tensor([[2.0, 4.0, 0.0], [-4.0, 0.0, 0.0]]) / 3)
    with pytest.raises(
        ValueError, match=r"logits \(2, 2\) for stored ones \(2, 3\); expected at least .*HINT: a head may"
    ):
        logit_mse(now[:, :2], then, torch.tensor([2, 3]))
