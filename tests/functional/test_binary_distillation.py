"""iCaRL's loss against a plain loop in float64."""

import math

import torch

from lightning_cl.functional import binary_distillation_loss


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_equals_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(6, 5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(6, 2, generator=generator, dtype=torch.float64).requires_grad_()
    y, old = torch.tensor([4, 0, 2, 1, 3, 3]), torch.tensor([3, 1])
    for temperature in (1.0, 2.0):
        expected = 0.0
        for n in range(6):
            for c in range(5):
                target = float(y[n] == c)
                if c in old.tolist():
                    target = sigmoid(float(teacher[n, old.tolist().index(c)]) / temperature)
                q = sigmoid(float(z[n, c]))
                expected -= (target * math.log(q) + (1 - target) * math.log(1 - q)) / 6
        loss = binary_distillation_loss(z, y, teacher, old, temperature)
        assert abs(float(loss) - expected) < 1e-12
    loss.backward()
    assert teacher.grad is None
    torch.testing.assert_close(z.grad[:, 0], (z[:, 0].sigmoid() - (y == 0).double()).detach() / 6)


def test_masked_logits_add_nothing_and_half_precision_is_computed_in_single():
    z, y = torch.tensor([[1.0, -2.0]]), torch.tensor([0])
    masked = torch.tensor([[1.0, -2.0, -1e30]], requires_grad=True)
    loss = binary_distillation_loss(masked, y)
    assert torch.equal(loss, binary_distillation_loss(z, y))
    loss.backward()
    assert float(masked.grad[0, 2]) == 0
    assert binary_distillation_loss(z.bfloat16(), y, z.bfloat16()[:, :1], torch.tensor([0])).dtype == torch.float32
