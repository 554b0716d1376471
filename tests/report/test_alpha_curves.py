"""The figures of interpolated weights and of the learning-rate search."""

from pathlib import Path
from typing import Any

import pytest

from lightning_cl.report.alpha_curves import alpha_curves
from lightning_cl.report.learning_rate import learning_rate_figure
from lightning_cl.report.page import write_report
from lightning_cl.report.run import Run
from tests.report.examples import example_results, write_run

ALPHAS = [0.0, 0.5, 1.0]


def curve(tests: int, validation: bool = True) -> dict[str, Any]:
    return {
        "alpha": 0.5,
        "alphas": ALPHAS,
        "validation": [0.2, 0.9, 0.8] if validation else None,
        "test": {f"task {i}": [0.1 * i / tests, None if i == 1 else 0.5, 0.7] for i in range(tests)},
    }


def run(**changes: Any) -> Run:
    return Run(example_results(**changes))


@pytest.mark.parametrize(("tests", "lines"), [(2, 4), (6, 8), (9, 12)])
def test_lines_of_validation_and_every_test_and_the_one_that_was_kept(tests: int, lines: int):
    figures = alpha_curves(run(interpolation={"wise_ft": {"0": curve(tests)}}))
    assert list(figures) == ["alpha_curve_0"]
    drawn = figures["alpha_curve_0"].axes[0].get_lines()
    assert len(drawn) == lines  # the mean is one more where there are many
    labels = [str(line.get_label()) for line in drawn]
    assert "kept: 0.5" in labels
    assert "validation" in labels
    assert ("test, mean of 9" in labels) == (tests == 9)


def test_one_figure_for_each_task_of_many_the_last():
    tasks = {str(i): curve(1, validation=False) for i in range(15)}
    figures = alpha_curves(run(interpolation={"wise_ft": tasks, "other": {"3": curve(1)}}))
    assert list(figures) == [f"alpha_curve_{i}" for i in range(3, 15)] + ["alpha_curve_other_3"]


def test_nothing_without_a_curve():
    assert alpha_curves(run()) == {}
    assert alpha_curves(run(interpolation=None)) == {}
    assert alpha_curves(run(interpolation={"wise_ft": {"0": {"alpha": 0.5, "alphas": [], "test": {}}}})) == {}
    assert learning_rate_figure(None) is None
    assert learning_rate_figure({"batch_size": 32}) is None


def test_they_are_on_the_page(tmp_path: Path):
    rates = [10.0 ** (k / 4 - 8) for k in range(32)]
    tuned = {"lr": rates[20], "lr_curve": {"lr": rates, "loss": [0.1, 9.0, *(2 - k / 30 for k in range(29)), None]}}
    folder = write_run(tmp_path / "run", example_results(interpolation={"wise_ft": {"0": curve(2)}}, tuned=tuned))
    page = write_report(folder).read_text()
    assert (folder / "plots" / "alpha_curve_0.png").is_file()
    assert (folder / "plots" / "learning_rate.png").is_file()
    assert "test data do not choose it" in page
    low, high = learning_rate_figure(tuned).axes[0].get_ylim()  # type: ignore[union-attr]
    assert high < 3, "the running mean that has not settled does not press it flat"
    assert low < 1.4
