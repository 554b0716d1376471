"""Floors, the baseline and trivial streams, as a reader sees them."""

import io
import json

import pytest
from rich.console import Console

from lightning_cl.report import gather, write_comparison, write_report
from lightning_cl.report.comparison import comparison_table
from lightning_cl.report.comparison_plots import comparison_figures
from lightning_cl.report.comparison_terminal import print_comparison
from lightning_cl.report.floors import floor_lines, role, trivial_run
from lightning_cl.report.run import Run
from lightning_cl.report.terminal import matrix_table

from .examples import example_results, write_run
from .test_page import text_of

JOINT = 2e10


def console(width=100):
    return Console(file=io.StringIO(), width=width)


def result(method, accuracy, budget=None, share=1.0, seed=0):
    base = example_results("joint" if method == "joint" else "er", 3, seed)
    config = {**base["config"], "budget": budget}
    compute = {"stages": {}, "total": share * JOINT, "evaluation": 0, "joint": JOINT, "budget": budget}
    return {**base, "method": method, "average_accuracy": accuracy, "compute": compute, "config": config}


def runs(**changes):
    rows = [
        ("joint", 0.97, None, 1.0), ("joint", 0.93, 0.1, 0.1), ("uniform", 0.92, 0.1, 0.1), ("uniform", 0.95, 0.5, 0.5),
        ("er", 0.8, 0.1, 0.1), ("naive", 0.2, 0.1, 0.1), ("naive", 0.21, None, 0.99), ("keep", 0.19, 0.1, 0.02),
    ]  # fmt: skip
    return [Run(result(*row)) for row in rows]


def test_roles_and_lines():
    rows = comparison_table(runs())
    roles = {row.label: role(row) for row in rows}
    assert roles["joint (budget=null)"] == "bound"
    assert roles["joint (budget=0.1)"] == roles["naive (budget=null)"] == roles["keep"] == "floor"
    assert roles["uniform (budget=0.1)"] == "baseline"
    assert roles["er"] == ""
    assert floor_lines(rows) == [
        "at 10 % of joint's compute: uniform 92.00 %; above it: joint (budget=0.1) 93.00; "
        "floors not run: shrink_and_perturb",
        "at 50 % of joint's compute: uniform 95.00 %; above it: nothing; "
        "floors not run: naive, shrink_and_perturb, joint",
        "without a budget: floors not run: shrink_and_perturb",
    ]


@pytest.mark.parametrize(("naive", "said"), [(0.9599, False), (0.96, True), (0.99, True)])
def test_a_trivial_stream_is_called_so(naive, said, tmp_path):
    line = "trivial stream: naive is within 1 point of joint"
    both = [Run(result("joint", 0.97)), Run(result("naive", naive)), Run(result("naive", 0.1, 0.1))]
    assert any(line in text for text in floor_lines(comparison_table(both))) == said
    results = {
        **result("er", 0.9),
        "reference_methods": {"naive": result("naive", naive), "joint": result("joint", 0.97)},
    }
    assert (line in trivial_run(Run(results))) == said
    page = write_report(write_run(tmp_path, results)).read_text()
    assert (line in text_of(page)) == said
    screen = console()
    matrix_table(results, screen)
    assert (line in screen.file.getvalue()) == said


def test_losses_have_no_points():
    lower = {"metric": {"name": "loss", "higher_is_better": False}}
    both = [Run({**result(name, 0.5), **lower}) for name in ("naive", "joint")]
    (line,) = floor_lines(comparison_table(both))
    assert line == "without a budget: floors not run: shrink_and_perturb, keep"


def test_pages_and_figures(tmp_path):
    for i, run in enumerate(runs()):
        write_run(tmp_path / str(i), run.results)
    rows = comparison_table(gather([tmp_path]))
    assert "accuracy_against_share" in comparison_figures(rows)
    text = text_of(write_comparison(gather([tmp_path]), tmp_path / "out").read_text())
    assert "share of joint" in text
    assert "floor" in text
    assert "above it: joint (budget=0.1) 93.00" in text
    (stream,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["streams"]
    shares = {(row["method"], row["settings"].get("budget")): row["compute_share"]["mean"] for row in stream["rows"]}
    assert shares["uniform", "0.5"] == 0.5
    screen = console(200)
    print_comparison(rows, screen)
    assert "uniform (budget=0.1) [baseline]" in screen.file.getvalue()
    report = text_of(write_report(tmp_path / "2").read_text())
    assert "Share of joint compute" in report
    assert "budget 10 %" in report


def test_runs_of_an_earlier_version_have_no_share():
    rows = comparison_table([Run(example_results("er", 3)), Run(example_results("naive", 3))])
    assert "accuracy_against_share" not in comparison_figures(rows)
    assert floor_lines(rows) == ["without a budget: floors not run: shrink_and_perturb, joint, keep"]
