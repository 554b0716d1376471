"""Projections against hand-worked cases, the KKT conditions, and a general solver."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_cl.functional import project_agem, project_gem

SHAPES = [(3, 2), (4,), ()]


def random(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def flat(gradient: list[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in gradient])


def vector(*values: float) -> list[Tensor]:
    return [torch.tensor(values, dtype=torch.float64)]


def test_agem_by_hand():
    # 45 degrees: what points against (1, 0) is taken away
    assert project_agem(vector(-1, 1), vector(2, 0))[0].tolist() == [0, 1]
    # g.r = -2, r.r = 8: g + r / 4
    assert project_agem(vector(1, -2), vector(2, 2))[0].tolist() == [1.5, -1.5]


@pytest.mark.parametrize("seed", range(6))
def test_agem_is_the_nearest_gradient_on_the_right_side(seed: int):
    gradient, reference = random(seed), random(100 + seed)
    before = [t.clone() for t in gradient]
    projected = project_agem(gradient, reference)
    dot = float(flat(gradient) @ flat(reference))
    if dot >= 0:
        assert all(a is b for a, b in zip(projected, gradient, strict=True))
        return
    moved = flat(projected) - flat(gradient)
    # KKT: feasible and tight, moved along the reference's direction only, with a multiplier >= 0
    assert abs(float(flat(projected) @ flat(reference))) < 1e-12
    multiplier = float(moved @ flat(reference)) / float(flat(reference) @ flat(reference))
    torch.testing.assert_close(moved, multiplier * flat(reference))
    assert multiplier > 0
    assert all(torch.equal(a, b) for a, b in zip(gradient, before, strict=True))


def test_gem_by_hand():
    # the only constraint is violated
    (found,) = project_gem(vector(-1, 1), [vector(1, 0)], margin=0.0, epsilon=1e-12)
    assert found.tolist() == pytest.approx([0, 1], abs=1e-9)
    # a margin adds its part of the reference even where less would do
    (found,) = project_gem(vector(-1, 1), [vector(1, 0)], margin=3.0)
    assert found.tolist() == pytest.approx([2, 1])
    # two constraints, x >= 0 and y >= 0, from (-1, -2): the corner
    (found,) = project_gem(vector(-1, -2), [vector(1, 0), vector(0, 1)], margin=0.0, epsilon=1e-12)
    assert found.tolist() == pytest.approx([0, 0], abs=1e-9)
    # the second is not violated by g; margin 0 leaves it alone
    (found,) = project_gem(vector(-1, 2), [vector(1, 0), vector(0, 1)], margin=0.0, epsilon=1e-12)
    assert found.tolist() == pytest.approx([0, 2], abs=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.5])
@pytest.mark.parametrize("seed", range(5))
def test_gem_against_a_general_solver(seed: int, margin: float):
    gradient, references = random(seed), [random(50 + 10 * seed + k) for k in range(4)]
    rows = torch.stack([flat(r) for r in references])
    towards = rows @ flat(gradient)
    projected = flat(project_gem(gradient, references, margin))
    if not bool((towards < 0).any()):
        assert torch.equal(projected, flat(gradient))
        return
    gram = (rows @ rows.T + 1e-3 * torch.eye(4)).numpy()
    linear = towards.numpy()
    found = minimize(
        lambda v: 0.5 * v @ gram @ v + linear @ v,
        np.full(4, margin + 1.0),
        jac=lambda v: gram @ v + linear,
        bounds=[(margin, None)] * 4,
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )
    torch.testing.assert_close(projected, flat(gradient) + torch.from_numpy(found.x) @ rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_gem_without_margin_satisfies_the_kkt_conditions_of_its_primal(seed: int):
    gradient, references = random(seed), [random(7 + 10 * seed + k) for k in range(3)]
    rows = torch.stack([flat(r) for r in references])
    projected = flat(project_gem(gradient, references, margin=0.0, epsilon=1e-12))
    slack = rows @ projected
    assert bool((slack > -1e-9).all())
    moved = projected - flat(gradient)
    multipliers = torch.linalg.lstsq(rows.T, moved.unsqueeze(1)).solution.flatten()
    torch.testing.assert_close(multipliers @ rows, moved, rtol=0, atol=1e-9)
    assert bool((multipliers > -1e-9).all())
    assert bool(((multipliers * slack).abs() < 1e-8).all())


def test_one_reference_without_margin_is_agem():
    gradient, reference = random(0), [-t for t in random(0)]
    one = project_agem(gradient, reference)
    two = project_gem(gradient, [reference], margin=0.0, epsilon=1e-13)
    torch.testing.assert_close(flat(one), flat(two), rtol=0, atol=1e-10)
    assert float(flat(one).abs().max()) < 1e-12  # it pointed straight against it


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["gradient", "reference"])
def test_what_is_not_finite_changes_nothing(value: float, where: str):
    gradient, reference = vector(1, -1), vector(0, 1)
    (gradient if where == "gradient" else reference)[0][1] = value
    for projected in (project_agem(gradient, reference), project_gem(gradient, [reference])):
        assert projected[0] is gradient[0]


def test_zero_references_and_none_change_nothing():
    gradient = vector(1, -1)
    assert project_agem(gradient, vector(0, 0))[0] is gradient[0]
    assert project_gem(gradient, [vector(0, 0)])[0] is gradient[0]
    assert project_gem(gradient, [])[0] is gradient[0]


def test_half_precision_dot_products_do_not_overflow():
    gradient, reference = [torch.full((4096,), -8.0, dtype=torch.float16)], [torch.full((4096,), 8.0).half()]
    (projected,) = project_agem(gradient, reference)
    assert projected.dtype == torch.float16
    assert not bool(projected.any())
    (projected,) = project_gem(gradient, [reference], margin=0.0)
    assert projected.dtype == torch.float16
    assert float(projected.abs().max()) < 1e-2


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \[\(2,\)\]; expected \[\(3,\)\].*HINT: take both"):
        project_agem([torch.zeros(3)], [torch.zeros(2)])
    with pytest.raises(ValueError, match=r"without tensors.*HINT"):
        project_gem([], [[]])
