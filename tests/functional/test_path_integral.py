"""Path integrals against a slow loop, and against what they stand for: the loss that was lost on the way."""

import pytest
import torch

from lightning_cl.functional import _chunks
from lightning_cl.functional.path_integral import (
    add_path_integral_,
    average_scores,
    moving_average,
    riemannian_score,
    scale_to_unit,
    synaptic_importance,
    with_corner,
)

SHAPES = [(3, 4), (7,), (2, 3, 2), ()]


def tensors(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


@pytest.mark.parametrize("large", [4, 10**9])
def test_sum_over_steps_is_that_of_a_loop(large, monkeypatch):
    monkeypatch.setattr(_chunks, "LARGE", large)
    monkeypatch.setattr(_chunks, "CHUNK", 5)
    paths, expected = [torch.zeros(s, dtype=torch.float64) for s in SHAPES], [0.0] * len(SHAPES)
    for step in range(3):
        gradients, starts, ends = (tensors(10 * step + i) for i in range(3))
        add_path_integral_(paths, gradients, starts, ends)
        for i, (g, a, b) in enumerate(zip(gradients, starts, ends, strict=True)):
            expected[i] = expected[i] - g * (b - a)
    for path, value in zip(paths, expected, strict=True):
        torch.testing.assert_close(path, value)


def test_half_precision_weights_have_fp32_integrals():
    gradients, starts, ends = (tensors(seed, torch.bfloat16) for seed in range(3))
    paths = [torch.zeros(s) for s in SHAPES]
    add_path_integral_(paths, gradients, starts, ends)
    for path, g, a, b in zip(paths, gradients, starts, ends, strict=True):
        torch.testing.assert_close(path, -g.float() * (b.float() - a.float()))


def test_shares_of_all_parameters_add_up_to_the_drop_of_the_loss():
    # the line integral of a gradient: what the steps are made of does not matter
    a = torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = lambda theta: (theta @ a @ a.T @ theta) / 2 + theta.cos().sum()  # noqa: E731
    theta, path, n = torch.linspace(-1, 1, 6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64), 4_000
    first = loss(theta)
    for step in range(n):
        leaf = theta.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(leaf), leaf)
        move = (-gradient + torch.tensor([0.3, -0.2, 0.1, 0.0, 0.5, -0.4]) * (1 if step < n / 2 else -1)) / n
        add_path_integral_([path], [gradient], [theta], [theta + move])
        theta = theta + move
    drop = float(first - loss(theta))
    assert drop > 1
    assert float(path.sum()) == pytest.approx(drop, rel=5e-3)


def test_importance_of_a_task():
    path, start, end = ({str(i): v for i, v in enumerate(tensors(seed))} for seed in range(3))
    got = synaptic_importance(path, start, end, 0.3)
    for name in path:
        for w, a, b, omega in zip(*(t[name].flatten().tolist() for t in (path, start, end, got)), strict=True):
            assert omega == pytest.approx(max(0.0, w / ((b - a) ** 2 + 0.3)))
    assert any(bool((value < 0).any()) for value in path.values()), "something was clamped"


def test_half_precision_ends_do_not_round_the_importance():
    path, start, end = {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.5]).bfloat16()}
    assert float(synaptic_importance(path, start, end, 0.75)["w"]) == 1.0


def test_score_of_an_interval():
    drop, fisher, start, end = (torch.cat([t.flatten() for t in tensors(seed)]) for seed in range(4))
    got = riemannian_score(drop, fisher.abs(), start, end, 0.01)
    for d, f, a, b, s in zip(*(t.tolist() for t in (drop, fisher.abs(), start, end, got)), strict=True):
        assert s == pytest.approx(max(0.0, d / (0.5 * f * (b - a) ** 2 + 0.01)))
    assert bool((drop < 0).any())


def test_inputs_are_left_alone():
    drop, fisher, start, end = (tensors(seed)[0] for seed in range(4))
    before = [t.clone() for t in (drop, fisher, start, end)]
    riemannian_score(drop, fisher, start, end, 0.1)
    synaptic_importance({"w": drop}, {"w": start}, {"w": end}, 0.1)
    scale_to_unit({"w": drop})
    moving_average(fisher, drop, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (drop, fisher, start, end), strict=True))


def test_moving_average_starts_with_its_first_value():
    values = [torch.tensor([1.0, 4.0]), torch.tensor([3.0, 0.0]), torch.tensor([5.0, 8.0])]
    average = None
    for value in values:
        average = moving_average(average, value, 0.9)
    assert average.tolist() == pytest.approx([0.1 * (0.1 * 1 + 0.9 * 3) + 0.9 * 5, 0.1 * (0.1 * 4) + 0.9 * 8])
    first = moving_average(None, values[0], 0.9)
    first += 1
    assert values[0].tolist() == [1.0, 4.0]


def test_scores_of_three_tasks_are_halved_each_time():
    scores = {}
    for value in (8.0, 4.0, 2.0):
        scores = average_scores(scores, {"w": torch.tensor([value])})
    assert scores["w"].tolist() == [((8 + 4) / 2 + 2) / 2]
    assert average_scores(scores, {})["w"].tolist() == [4.0]


def test_new_rows_count_in_full():
    old, new = torch.tensor([[2.0, 4.0]]), torch.tensor([[4.0, 0.0], [6.0, 8.0]])
    assert average_scores({"w": old}, {"w": new})["w"].tolist() == [[3, 2], [6, 8]]
    assert moving_average(old, new, 0.5).tolist() == [[3, 2], [6, 8]]
    assert with_corner(new, old).tolist() == [[2, 4], [6, 8]]
    assert new.tolist() == [[4, 0], [6, 8]]
    assert float(with_corner(torch.tensor(1.0), torch.tensor(2.0))) == 2


def test_unit_scale_is_over_all_tensors_together():
    got = scale_to_unit({"a": torch.tensor([2.0, 4.0]), "b": torch.tensor([[10.0]]), "empty": torch.zeros(0)})
    assert {name: value.flatten().tolist() for name, value in got.items()} == {"a": [0, 0.25], "b": [1.0], "empty": []}
    assert scale_to_unit({"a": torch.full((2,), 3.0)})["a"].tolist() == [0.0, 0.0]
    assert scale_to_unit({}) == {}


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_damping_has_to_be_positive(value):
    one = torch.ones(1)
    with pytest.raises(ValueError, match=rf"xi={value!r}; expected a finite number > 0. HINT: xi bounds"):
        synaptic_importance({"w": one}, {"w": one}, {"w": one}, value)
    with pytest.raises(ValueError, match=rf"epsilon={value!r}; expected a finite number > 0. HINT: epsilon bounds"):
        riemannian_score(one, one, one, one, value)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_weight_of_the_average_lies_in_the_unit_interval(alpha):
    with pytest.raises(ValueError, match=rf"alpha={alpha}; expected a number in \(0, 1\]. HINT: 1 keeps"):
        moving_average(None, torch.ones(1), alpha)
