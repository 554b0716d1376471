import pytest
import torch
from torch.nn.functional import cross_entropy

from lightning_cl.functional.masking import mask_logits

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVE = torch.tensor([True, False, True, False, True, False])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_same_as_a_smaller_softmax(dtype, scale):
    values = (torch.randn(7, 6, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    targets = torch.tensor([0, 2, 4, 0, 2, 4, 0])
    logits, small = values.clone().requires_grad_(), values[:, ACTIVE].clone().requires_grad_()
    masked = mask_logits(logits, ACTIVE)
    assert masked.dtype == dtype
    assert masked.isfinite().all()
    loss, oracle = cross_entropy(masked, targets), cross_entropy(small, targets // 2)
    torch.testing.assert_close(loss, oracle)
    loss.backward()
    oracle.backward()
    torch.testing.assert_close(logits.grad[:, ACTIVE], small.grad)
    assert (logits.grad[:, ~ACTIVE] == 0).all()
    assert (masked.softmax(dim=1)[:, ~ACTIVE] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mask_per_sample(dtype):
    logits = torch.randn(2, 3).to(dtype)
    active = torch.tensor([[True, True, False], [False, False, True]])
    assert (mask_logits(logits, active).softmax(dim=1) > 0).equal(active)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_active_is_not_nan(dtype):
    logits = torch.randn(2, 4).to(dtype).requires_grad_()
    loss = cross_entropy(mask_logits(logits, torch.zeros(4, dtype=torch.bool)), torch.tensor([0, 1]))
    loss.backward()
    assert loss.isfinite()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_classes", [6, 1000])
def test_label_smoothing_stays_finite(dtype, n_classes):
    active = torch.arange(n_classes) % 2 == 0
    logits = torch.randn(4, n_classes).to(dtype).requires_grad_()
    loss = cross_entropy(mask_logits(logits, active), torch.zeros(4, dtype=torch.long), label_smoothing=0.1)
    loss.backward()
    assert not loss.isnan()
    assert loss.isfinite() or dtype == torch.float16
    assert logits.grad.isfinite().all()


def test_scale_of_half_loss_computed_in_fp32():
    logits = torch.randn(4, 1000).half()
    masked = mask_logits(logits, torch.arange(1000) < 2).float()
    assert cross_entropy(masked, torch.zeros(4, dtype=torch.long), label_smoothing=0.1).isfinite()


def test_wrong_masks():
    with pytest.raises(ValueError, match=r"active.dtype=torch.int64; expected torch.bool.*HINT"):
        mask_logits(torch.randn(2, 3), torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=r"active.shape=\(2,\); expected \(3,\) or \(2, 3\).*HINT"):
        mask_logits(torch.randn(2, 3), torch.tensor([True, False]))
