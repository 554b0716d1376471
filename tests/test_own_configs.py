"""Experiments, methods and a main config of one's own: runs are what they are called."""

import json
from pathlib import Path

import pytest

from tests.command_line import QUICK, Call, call

__all__ = ["call"]
OWN = {
    "experiment/mine.yaml": "# @package _global_\ndefaults: [{override /method: [ewc]}]\n",
    "method/both.yaml": "# @package _global_\ndefaults: [er, ewc]\n",
    "short.yaml": "defaults: [config, _self_]\nbatch_size: 16\nlimit_tasks: 1\n",
}


@pytest.fixture
def own(tmp_path: Path) -> str:
    for name, text in OWN.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "own" / name).write_text(text)
    return str(tmp_path / "own")


def results(root: Path) -> dict[str, dict]:
    """By their folders' second part, the method."""
    found = root.glob("runs/*/*/*/seed=*/results.json")
    return {path.parts[-4]: json.loads(path.read_text()) for path in found}


def test_a_run_is_named_by_the_method_that_an_experiment_chooses(call: Call, own: str, tmp_path: Path):
    assert call("--config-dir", own, "experiment=mine", *QUICK).code == 0
    assert call("-m", "--config-dir", own, "experiment=mine", "method=si,[er,si]", *QUICK).code == 0
    assert call("--config-dir", own, "method=both", *QUICK).code == 0
    found = results(tmp_path)
    assert {name: result["method"] for name, result in found.items()} == {n: n for n in found}
    callbacks = {name: list(result["config"]["callbacks"]) for name, result in found.items()}
    assert callbacks == {"ewc": ["ewc"], "si": ["si"], "er+si": ["er", "si"], "both": ["er", "ewc"]}


def test_reference_methods_are_run_by_the_same_main_config(call: Call, own: str, tmp_path: Path):
    quick = [text for text in QUICK if not text.startswith("reference_methods")]
    more = ["reference_methods=[naive,joint]", "training_data=seen"]
    assert call("--config-dir", own, "--config-name", "short", *quick, *more).code == 0
    result = results(tmp_path)["er"]
    both = result["reference_methods"]
    assert result["config"]["training_data"] == "seen"
    assert {name: run["config"]["training_data"] for name, run in both.items()} == {"naive": "current", "joint": "all"}
    assert all(run["config"]["batch_size"] == 16 and run["config"]["limit_tasks"] == 1 for run in both.values())


def test_a_refused_command_leaves_the_notes_of_the_run_that_is_there(call: Call, tmp_path: Path):
    run = ["limit_tasks=1", "validation_fraction=0.2", "hydra.run.dir=run/one", *QUICK]
    assert call("batch_size=64", *run).code == 0
    before = {file: file.read_bytes() for file in tmp_path.glob("run/one/.hydra/*.yaml")}
    assert "batch_size: 64 -> 32" in call("batch_size=32", *run).error
    assert before == {file: file.read_bytes() for file in tmp_path.glob("run/one/.hydra/*.yaml")}
    assert "batch_size=64" in call("report", "run", "--best").out
    assert call("batch_size=32", *run, "resume=never").code == 0
    assert "batch_size=32" in call("report", "run", "--best").out
