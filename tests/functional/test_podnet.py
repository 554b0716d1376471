"""PODNet's losses against plain loops in float64 and cases worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from lightning_cl.functional.masking import mask_logits
from lightning_cl.functional.podnet import nca_loss, pooled_distance, pooled_outputs


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def plain_pooled(sample: Tensor) -> list[float]:
    c, h, w = sample.shape
    rows = [sum(float(sample[i, j, k]) ** 2 for k in range(w)) for i in range(c) for j in range(h)]
    columns = [sum(float(sample[i, j, k]) ** 2 for j in range(h)) for i in range(c) for k in range(w)]
    length = math.hypot(*rows, *columns)
    return [value / length for value in rows + columns]


def test_maps_are_pooled_over_width_and_height():
    maps, old = draws(3, 2, 4, 5), draws(3, 2, 4, 5, seed=1)
    expected = [plain_pooled(sample) for sample in maps]
    torch.testing.assert_close(pooled_outputs(maps), torch.tensor(expected, dtype=torch.float64))
    distances = [math.dist(a, plain_pooled(b)) for a, b in zip(expected, old, strict=True)]
    assert float(pooled_distance(maps, old)) == pytest.approx(sum(distances) / 3, abs=1e-12)
    assert torch.autograd.gradcheck(lambda x: pooled_distance(x, old.detach()), (maps,))


def test_flat_outputs_are_taken_as_they_are():
    flat, old = draws(4, 6), draws(4, 6, seed=1)
    torch.testing.assert_close(pooled_outputs(flat), flat / flat.norm(dim=1, keepdim=True))
    unit, old_unit = flat / flat.norm(dim=1, keepdim=True), old / old.norm(dim=1, keepdim=True)
    assert float(pooled_distance(flat, old)) == pytest.approx(float((unit - old_unit).norm(dim=1).mean()), abs=1e-12)
    assert float(pooled_distance(flat, -5 * flat)) == pytest.approx(2)
    # tokens (N, T, d) are flattened
    torch.testing.assert_close(pooled_outputs(draws(2, 3, 4)), pooled_outputs(draws(2, 3, 4).flatten(1)))


def test_where_nothing_has_changed_the_gradient_is_zero():
    maps = draws(3, 2, 4, 4)
    loss = pooled_distance(maps, maps.detach())
    loss.backward()
    assert float(loss) == 0
    assert bool((maps.grad == 0).all())  # type: ignore[union-attr]


def plain_nca(s: list[list[float]], y: list[int], eta: float, margin: float) -> float:
    terms = []
    for row, label in zip(s, y, strict=True):
        above = math.exp(eta * (row[label] - margin))
        below = sum(math.exp(eta * value) for i, value in enumerate(row) if i != label)
        terms.append(max(0.0, -math.log(above / below)))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("eta", [1.0, 10.0])
@pytest.mark.parametrize("margin", [0.0, 0.6])
def test_nca_against_a_plain_loop(eta: float, margin: float):
    similarities, y = draws(20, 5).tanh().detach().requires_grad_(), torch.arange(20) % 5
    expected = plain_nca(similarities.tolist(), y.tolist(), eta, margin)
    assert float(nca_loss(similarities, y, eta, margin)) == pytest.approx(expected, abs=1e-12)
    scale = torch.tensor([eta], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, e: nca_loss(s, y, e, margin), (similarities, scale))


def test_nca_has_no_loss_far_on_the_right_side_and_reads_only_active_classes():
    similarities = torch.tensor([[1.0, 0.1, 0.2]])
    assert float(nca_loss(similarities, torch.tensor([0]), 10.0, 0.6)) == 0
    # classes 0 and 2 are active: 10 * 0.2 - 10 * (0.5 - 0.6)
    masked = mask_logits(torch.tensor([[0.5, 0.9, 0.2]]), torch.tensor([True, False, True]))
    assert float(nca_loss(masked, torch.tensor([0]), 10.0, 0.6)) == pytest.approx(3.0)
    alone = mask_logits(torch.tensor([[0.5, 0.9]], requires_grad=True), torch.tensor([True, False]))
    assert float(nca_loss(alone, torch.tensor([0]), 10.0, 0.6)) == 0


def test_half_precision_is_computed_in_fp32():
    half = draws(4, 3, 2, 2).detach().bfloat16()
    assert pooled_distance(half, half).dtype == torch.float32
    assert nca_loss(half.flatten(1), torch.zeros(4).long()).dtype == torch.float32


def test_refusal():
    with pytest.raises(ValueError, match=r"outputs \(2, 3\) and old_outputs \(2, 4\); expected equal shapes. HINT:"):
        pooled_distance(torch.zeros(2, 3), torch.zeros(2, 4))
