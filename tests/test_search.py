"""Optuna's sweeper in place of a grid; needs ``pip install 'lightning-cl[sweep]'``."""

import json
import math
from pathlib import Path

import pytest

from tests.command_line import QUICK, Call, call
from tests.sweeps import written

__all__ = ["call"]
pytest.importorskip("hydra_plugins.hydra_optuna_sweeper.optuna_sweeper")
SEARCH = ["-m", "hydra/sweeper=search", "method=l2", "callbacks.l2.lambda_=tag(log,interval(1e-4,1e2))"]


def found(root: Path) -> dict[str, dict]:
    return {str(file.parent.relative_to(root)): json.loads(file.read_text()) for file in root.rglob("results.json")}


@pytest.mark.slow
def test_a_search_goes_on_with_the_trials_that_it_has(call: Call, tmp_path: Path):
    more = ["validation_fraction=0.2", *QUICK]
    first = call(*SEARCH, *more, "hydra.sweeper.n_trials=2")
    assert first.code == 0, first.err
    runs = tmp_path / "runs"
    before = found(runs)
    at = written(runs, before)
    assert len(before) == 2
    whole = call(*SEARCH, *more, "hydra.sweeper.n_trials=4")  # as after a kill: the same first trials, not run again
    assert whole.code == 0, whole.err
    after = found(runs)
    assert len(after) == 4
    assert {folder: after[folder] for folder in before} == before
    assert written(runs, before) == at
    best = (runs / "optimization_results.yaml").read_text()
    value = (
        max(r["validation_accuracy_matrix"][1][0] + r["validation_accuracy_matrix"][1][1] for r in after.values()) / 2
    )
    assert math.isclose(float(best.partition("best_value: ")[2].split()[0]), value)


@pytest.mark.slow
def test_a_failed_trial_stops_nobody(call: Call, tmp_path: Path):
    outcome = call(*SEARCH, "validation_fraction=choice(0.0,7.0)", *QUICK, "hydra.sweeper.n_trials=4")
    assert outcome.code == 1
    assert "validation_fraction=7.0" in outcome.out
    assert any(result["status"] == "finished" for result in found(tmp_path / "runs").values())
