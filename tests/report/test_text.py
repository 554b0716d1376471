import pytest

from lightning_cl.report.settings import differing, flat, short_names
from lightning_cl.report.statistic import Statistic
from lightning_cl.report.text import duration, flops, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 FLOPs"),
        (999, "999 FLOPs"),
        (1000, "1.00 kFLOPs"),
        (999_999_999, "1.00 GFLOPs"),
        (2.5e21, "2500.00 EFLOPs"),
    ],
)
def test_flops(count, text):
    assert flops(count) == text


@pytest.mark.parametrize(("count", "text"), [(1023, "1023 B"), (1024, "1.00 KiB"), (3 * 2**30, "3.00 GiB")])
def test_size(count, text):
    assert size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.6, "1 h 00 min"), (7170, "2 h 00 min")]
)
def test_duration_carries_over(seconds, text):
    assert duration(seconds) == text


def test_statistic_by_hand():
    # mean 4, squared deviations 4 + 0 + 4, over n - 1 = 2: variance 4
    assert (Statistic.of([2.0, 4.0, 6.0]).mean, Statistic.of([2.0, 4.0, 6.0]).sd) == (4.0, 2.0)
    assert Statistic.of([0.5]).text(lambda value: f"{value:.1f}") == "0.5 ± -"
    assert Statistic.of([None, float("nan")]).text(str) == "-"


def test_settings_tell_configs_apart():
    one = flat({"seed": 0, "num_workers": 0, "callbacks": {"ewc": {"lambda": 1}, "si": {"lambda": 2}}})
    two = flat({"seed": 1, "num_workers": 2, "callbacks": {"ewc": {"lambda": 5}, "si": {"lambda": 3}}})
    keys = differing([one, two])
    assert keys == ["callbacks.ewc.lambda", "callbacks.si.lambda"]
    assert list(short_names(keys).values()) == ["ewc.lambda", "si.lambda"]
    assert list(short_names(["model.lr", "callbacks.ewc.lambda"]).values()) == ["lr", "lambda"]


def test_an_interpolated_setting_is_named_once():
    configs = [{"lr": v, "model.lr": v, "model.lambda": w} for v, w in ((0.1, 1), (0.2, 1), (0.2, 2))]
    assert differing(configs) == ["lr", "model.lambda"]
    # an absent key is a difference too
    assert differing([{"a": 1}, {"a": 1, "b": None}]) == ["b"]
