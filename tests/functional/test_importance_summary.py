import math

import pytest
import torch

from lightning_cl.functional import summarize_importance
from lightning_cl.functional.seeding import generator


def test_figures_agree_with_a_computation_in_python():
    weights = torch.rand(7, 5, generator=generator(0, "weights")) ** 4
    weights[2] = 0
    importance = {"layer.weight": weights, "layer.bias": torch.tensor([0.5, 0.25, 0.0])}
    rows = summarize_importance(importance)
    total = sum(float(v) for value in importance.values() for v in value.flatten().tolist())
    for row, (name, value) in zip(rows, importance.items(), strict=True):
        values = value.flatten().tolist()
        assert (row["name"], row["shape"], row["size"]) == (name, list(value.shape), len(values))
        assert row["sum"] == pytest.approx(sum(values))
        assert row["mean"] == pytest.approx(sum(values) / len(values))
        assert row["max"] == max(values)
        assert row["share"] == pytest.approx(sum(values) / total)
        assert row["zeros"] == values.count(0.0)
    positive = sorted(math.log10(v) for v in weights.flatten().tolist() if v > 0)
    quantiles = rows[0]["log10_quantiles"]
    assert quantiles == sorted(quantiles)
    assert quantiles[2] in [pytest.approx(v) for v in positive[14:16]]
    assert all(low <= v <= high for v in quantiles for low, high in [(positive[0], positive[-1])])


def test_large_parameters_are_sampled_and_the_same_every_time():
    # one column holds everything: a strided sample could miss it, or see nothing else
    value = torch.zeros(400, 1000)
    value[:, 7] = 1e-3
    value[:, 8:] = 1e-6
    (first,), (again,) = summarize_importance({"w": value}), summarize_importance({"w": value})
    assert first == again
    assert first["zeros"] == 400 * 7
    assert first["log10_quantiles"] == [pytest.approx(-6)] * 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype: torch.dtype):
    (row,) = summarize_importance({"w": torch.full((300,), 0.5, dtype=dtype)})
    assert (row["sum"], row["max"], row["share"]) == (150.0, 0.5, 1.0)


@pytest.mark.parametrize("value", [torch.zeros(3), torch.tensor([float("nan"), 1.0]), torch.zeros(0)])
def test_nothing_that_can_be_shared_out(value: torch.Tensor):
    (row,) = summarize_importance({"w": value})
    assert row["share"] is None
    assert (row["log10_quantiles"] is None) == (not bool((value > 0).any()))
