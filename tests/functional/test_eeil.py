"""EEIL's distillation against a plain loop in float64 and a case worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cl.functional.eeil import cross_distillation_loss


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def softmax(values: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in values]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("tasks", [[[0, 1]], [[0, 1], [2, 3, 4]], [[4, 0], [2]]])
def test_against_a_plain_loop(tasks: list[list[int]], temperature: float):
    new, old = draws(6, 7), draws(6, 5, seed=1)
    expected = 0.0
    for task in tasks:
        for row, old_row in zip(new.tolist(), old.tolist(), strict=True):
            p = softmax([row[c] for c in task], temperature)
            q = softmax([old_row[c] for c in task], temperature)
            expected -= sum(b * math.log(a) for a, b in zip(p, q, strict=True)) / 6
    assert float(cross_distillation_loss(new, old, tasks, temperature)) == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.gradcheck(lambda z: cross_distillation_loss(z, old.detach(), tasks, temperature), (new,))


def test_columns_of_no_task_have_no_gradient_and_an_equal_model_has_none_at_all():
    new = draws(6, 5)
    cross_distillation_loss(new, draws(6, 5, seed=1), [[0, 1], [2]]).backward()
    assert bool((new.grad[:, 2:] == 0).all())  # type: ignore[index]
    assert bool((new.grad[:, :2] != 0).any())  # type: ignore[index]
    same = draws(6, 4)
    (gradient,) = torch.autograd.grad(cross_distillation_loss(same, same.detach(), [[0, 1], [2, 3]]), same)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient))


def test_no_tasks_and_half_precision():
    assert float(cross_distillation_loss(draws(2, 3), draws(2, 3), [])) == 0
    half = draws(2, 3).detach().bfloat16()
    assert cross_distillation_loss(half, half, [[0, 1]]).dtype == torch.float32


def test_refusal():
    with pytest.raises(ValueError, match=r"temperature=0; expected a number > 0. HINT: 2.0"):
        cross_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 2), [[0, 1]], 0)
