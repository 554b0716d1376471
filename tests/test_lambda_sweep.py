"""A penalty's strength by decades: the sweep, its diverging jobs, and the choice on validation data."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import instantiate

from tests.command_line import QUICK, Call, call
from tests.conf.test_configs import composed, options, values

__all__ = ["call"]
SWEEP = ["experiment=lambda_sweep", "method=ewc", "stream.scenario=task_incremental", "optimizer=sgd", *QUICK]


def penalties() -> list[str]:
    """Methods whose callbacks have a lambda."""
    found = []
    for method in options("method"):
        sections = (values(composed(f"method={method}"))["callbacks"] or {}).values()
        if any("lambda_" in section for section in sections):
            found.append(method)
    return found


@pytest.mark.parametrize("method", penalties())
def test_every_penalty_reads_the_sweeps_lambda(method: str):
    config = composed("experiment=lambda_sweep", f"method={method}", "lambda_=1e7")
    built = [instantiate(section, _convert_="all") for section in config.callbacks.values() if "_target_" in section]
    assert [callback.lambda_ for callback in built] == [1e7]
    assert config.validation_fraction == 0.1


@pytest.mark.parametrize(
    ("experiment", "key"),
    [
        ("lambda_sweep", "lambda_"),
        ("permuted_mnist_lambda", "lambda_"),
        ("vandeven2022/split_mnist_task_ewc_lambda", "callbacks.ewc.lambda_"),
    ],
)
def test_the_grid_is_all_decades(experiment: str, key: str):
    grid = composed(f"experiment={experiment}", hydra=True).hydra.sweeper.params[key]
    assert [float(value) for value in grid.split(",")] == [10.0**k for k in range(14)]


def lambdas(root: Path) -> dict[float, dict[int, dict[str, Any]]]:
    """Results by lambda and seed."""
    found: dict[float, dict[int, dict[str, Any]]] = {}
    for path in root.rglob("results.json"):
        content = json.loads(path.read_text())
        assert content["config"]["callbacks"]["ewc"]["lambda_"] == content["config"]["lambda_"]
        found.setdefault(content["config"]["lambda_"], {})[content["seed"]] = content
    return found


def test_sweep_report_and_choice(call: Call, tmp_path: Path):
    # 1e30 blows up in the second task, where there is a penalty for the first time; the third lambda comes after it
    sweep = call("-m", *SWEEP, "lambda_=1e0,1e30,1e2", "seed=0,1", "progress_bar=true")
    assert sweep.code == 1
    assert "Sweep: 4 of 6 jobs finished" in sweep.out
    diverged = [line for line in sweep.out.splitlines() if line.startswith("diverged: ")]
    assert len(diverged) == 2
    assert all("lambda_=1e+30" in line and "loss=" in line for line in diverged)
    found = lambdas(tmp_path / "runs")
    assert {value: sorted(seeds) for value, seeds in found.items()} == {1.0: [0, 1], 1e30: [0, 1], 100.0: [0, 1]}
    assert {run["status"] for run in found[1e30].values()} == {"failed"}

    def mean(value: float) -> float:
        last = [run["validation_accuracy_matrix"][-1] for run in found[value].values()]
        return sum(sum(row) / len(row) for row in last) / len(last)

    best = max([1.0, 100.0], key=mean)
    report = call("report", "runs")
    assert report.code == 0
    (line,) = [line for line in report.out.splitlines() if line.startswith("ewc: lambda from 1 to 1e30; ")]
    assert f"best on validation is {best:g} (validation {100 * mean(best):.2f} ± " in line
    assert "diverged at 1e30 (2 runs)" in line
    assert (tmp_path / "runs" / "plots" / "comparison_accuracy_against_lambda.png").is_file()

    chosen = call("report", "runs", "--best")
    assert (chosen.code, chosen.err) == (0, "")
    overrides = chosen.out.split()
    assert {"experiment=lambda_sweep", "method=ewc", "optimizer=sgd"} < set(overrides)
    assert not [text for text in overrides if text.startswith("seed=")]
    # the choice, run again on all data with another seed: one job, not the grid of the experiment's file
    final = ["-m", *overrides, "seed=7", "validation_fraction=0", "hydra.sweep.dir=final"]
    assert "Sweep: 1 of 1 jobs finished" in call(*final).out
    ((value, seeds),) = lambdas(tmp_path / "final").items()
    assert (value, list(seeds), seeds[7]["validation_accuracy_matrix"]) == (best, [7], None)
    said = json.loads(call("report", "runs", "--best", "--json").out)
    assert (said["overrides"], said["seeds"], said["settings"]) == (overrides, [0, 1], {"lambda_": f"{best:g}"})
    assert {Path(folder).name for folder in said["folders"]} == {"seed=0", "seed=1"}


def test_choices_that_cannot_be_made(call: Call, tmp_path: Path):
    assert call("-m", *SWEEP, "lambda_=1,2", "validation_fraction=0").code == 0
    assert "none can be called best on validation data" in call("report", "runs", "--best").error
    assert "--json without --best" in call("report", "runs", "--json").error
