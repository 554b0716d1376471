"""Between two models and the mean of several, against plain arithmetic in float64."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl.functional import average_states, interpolate
from lightning_cl.functional.interpolation import differing_entries


def net(seed: int, rows: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.Flatten(), nn.Linear(8, rows))
        made(torch.randn(5, 2, 4))
    return made


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.83])
def test_every_floating_point_entry_is_between_and_counters_are_the_second_models(alpha: float):
    a, b = net(0).state_dict(), net(1).state_dict()
    b["1.num_batches_tracked"] += 7
    mixed = interpolate(a, b, alpha)
    assert mixed.keys() == b.keys()
    for name, value in mixed.items():
        if name == "1.num_batches_tracked":
            assert int(value) == 8
        else:
            expected = (1 - alpha) * a[name].double() + alpha * b[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert not torch.equal(mixed["1.running_var"], b["1.running_var"])


def test_the_ends_are_the_models_to_the_bit_even_where_the_other_is_not_finite():
    a, b = net(0).state_dict(), net(1).state_dict()
    broken = {name: torch.full_like(value, float("nan")) if value.is_floating_point() else value for name, value in
              b.items()}  # fmt: skip
    for name in b:
        assert torch.equal(interpolate(a, b, 1)[name], b[name])
        if b[name].is_floating_point():
            assert torch.equal(interpolate(a, broken, 0)[name], a[name])
            assert torch.equal(interpolate(broken, b, 1.0)[name], b[name])


def test_entries_that_are_the_same_stay_the_same():
    a = net(0).state_dict()
    for alpha in (0.0, 0.3, 0.7, 1.0):
        assert all(torch.equal(value, a[name]) for name, value in interpolate(a, a, alpha).items())


def test_the_networks_function_is_that_of_the_mixed_weights():
    a, b, mixed = net(0).eval(), net(1).eval(), net(2).eval()
    mixed.load_state_dict(interpolate(a.state_dict(), b.state_dict(), 0.25))
    x = torch.randn(6, 2, 4)
    for end, model in ((0.0, a), (1.0, b)):
        copy = net(3).eval()
        copy.load_state_dict(interpolate(a.state_dict(), b.state_dict(), end))
        assert torch.equal(copy(x), model(x))
    assert not torch.allclose(mixed(x), a(x))
    assert not torch.allclose(mixed(x), b(x))


def test_shapes_that_differ_follow_the_rule():
    a = {
        "head.weight": torch.zeros(2, 3), "head.bias": torch.zeros(2), "gone": torch.ones(1), "wide": torch.zeros(4, 2),
        "reshaped": torch.zeros(4), "empty": torch.zeros(0, 3),
    }  # fmt: skip
    b = {
        "head.weight": torch.full((4, 3), 8.0), "head.bias": torch.full((4,), 8.0), "new": torch.full((2,), 8.0),
        "wide": torch.full((2, 2), 8.0), "reshaped": torch.full((2, 2), 8.0), "empty": torch.full((2, 3), 8.0),
    }  # fmt: skip
    mixed = interpolate(a, b, 0.25)
    assert mixed.keys() == b.keys()
    assert mixed["head.weight"].tolist() == [[2.0] * 3] * 2 + [[8.0] * 3] * 2
    assert mixed["head.bias"].tolist() == [2.0, 2.0, 8.0, 8.0]
    for name in ("new", "wide", "reshaped", "empty"):
        assert bool((mixed[name] == 8).all()), name


def test_nothing_is_changed_or_shared():
    a, b = {"w": torch.zeros(3), "n": torch.tensor(1)}, {"w": torch.ones(3), "n": torch.tensor(2)}
    for alpha in (0.0, 0.5, 1.0):
        mixed = interpolate(a, b, alpha)
        for value in mixed.values():
            value.add_(5)
    assert a["w"].tolist() == [0.0] * 3
    assert b["w"].tolist() == [1.0] * 3
    assert int(b["n"]) == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_precision_is_mixed_in_float32(dtype: torch.dtype):
    a, b = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    mixed = interpolate({"w": a}, {"w": b}, 0.3)["w"]
    assert mixed.dtype == dtype
    assert torch.equal(mixed, torch.lerp(a.to(torch.promote_types(dtype, torch.float32)), b.to(
        torch.promote_types(dtype, torch.float32)), 0.3).to(dtype))  # fmt: skip


def test_what_is_no_tensor_is_the_second_models():
    assert interpolate({"_extra_state": 1}, {"_extra_state": {"k": 2}}, 0.5) == {"_extra_state": {"k": 2}}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_another_alpha_is_refused(alpha: Any):
    with pytest.raises(ValueError, match=r"alpha=.*; expected a number from 0 to 1. HINT"):
        interpolate({}, {}, alpha)


def test_the_mean_of_several():
    states = [net(seed).state_dict() for seed in range(3)]
    mean = average_states(states)
    for name, value in mean.items():
        if value.is_floating_point():
            expected = torch.stack([state[name].double() for state in states]).mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-8)
        else:
            assert torch.equal(value, states[0][name])
    assert all(torch.equal(value, states[1][name]) for name, value in average_states([states[1]]).items())
    # four of the same: no rounding
    assert all(torch.equal(value, states[1][name]) for name, value in average_states([states[1]] * 4).items())


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([], "no states; expected at least one. HINT"),
        ([net(0).state_dict(), net(0, rows=4).state_dict()], r"3.weight is \(3, 8\) and \(4, 8\); expected the same"),
        ([{"a": torch.ones(1)}, {"b": torch.ones(1)}], r"a is in one only; expected the same entries in all. HINT"),
    ],
)
def test_models_that_differ_are_refused(states: Any, message: str):
    with pytest.raises(ValueError, match=message):
        average_states(states)


def test_entries_that_agree_differ_in_nothing():
    assert differing_entries(net(0).state_dict(), [net(1).state_dict(), net(2).state_dict()]) == ""
