"""Sweeps: a folder for each job, a summary, failed jobs that stop nobody."""

import json
from pathlib import Path

import pytest

from tests.command_line import QUICK, Call, call

__all__ = ["call"]


def results(root: Path) -> dict[str, dict]:
    found = {path.parent: json.loads(path.read_text()) for path in root.rglob("results.json")}
    return {str(folder.relative_to(root)): content for folder, content in found.items()}


def written_at(root: Path) -> dict[Path, int]:
    """When pages and boundary checkpoints were written."""
    files = [*root.rglob("report.html"), *root.rglob("task*.ckpt")]
    return {file: file.stat().st_mtime_ns for file in files}


def names_left(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_every_job_has_the_folder_that_it_has_alone(call: Call, tmp_path: Path):
    sweep = ["-m", "method=naive,[ewc,er]", "seed=1", *QUICK]
    outcome = call(*sweep)
    assert (outcome.code, outcome.err) == (0, "")
    assert "Sweep: 2 of 2 jobs finished" in outcome.out
    assert "Launching" not in outcome.out
    found = results(tmp_path / "runs")
    assert len(found) == 2
    assert {folder.split("/")[1] for folder in found} == {"naive", "ewc+er"}
    for folder, result in found.items():
        assert (result["method"], result["seed"]) == (folder.split("/")[1], int(folder[-1]))
        assert result["status"] == "finished"
        assert (tmp_path / "runs" / folder / "report.html").is_file()
    assert names_left(tmp_path / "runs") == {"multirun.yaml", "split_digits"}
    written = written_at(tmp_path)

    again = call(*sweep)
    assert (again.code, results(tmp_path / "runs")) == (0, found)  # finished jobs are not run again
    alone = call("method=[ewc,er]", "seed=1", *QUICK)
    assert alone.code == 0
    assert results(tmp_path / "runs") == found
    assert written == written_at(tmp_path)


def test_a_failed_job_stops_nobody_and_is_named(call: Call, tmp_path: Path):
    few = [text for text in QUICK if not text.startswith("stream.n_tasks")]
    outcome = call("-m", "method=naive", "stream.n_tasks=50,2", *few)
    assert outcome.code == 1
    assert "Sweep: 1 of 2 jobs finished" in outcome.out
    (line,) = [line for line in outcome.out.splitlines() if line.startswith("failed:")]
    assert "stream.n_tasks=50" in line
    assert "10 classes for 50 tasks; expected at least 50 classes. HINT:" in line
    assert "Traceback" not in outcome.err
    assert [result["status"] for result in results(tmp_path / "runs").values()] == ["finished"]
    log = next((tmp_path / "runs").rglob("*n_tasks=50*/seed=0/run.log")).read_text()
    assert "Traceback" in log  # for whom it may help
    assert call("-m", "method=naive", "stream.n_tasks=2", *few).code == 0  # and is forgotten by the next sweep


def test_a_job_that_cannot_be_composed_ends_the_sweep_before_it_starts(call: Call, tmp_path: Path):
    assert "method=foo; expected one of" in call("-m", "method=naive,foo", *QUICK).error
    assert not results(tmp_path)


def test_relative_folders(call: Call, tmp_path: Path):
    outcome = call(
        "-m", "method=naive", "seed=0", "stream=split_mnist", "data_dir=my/data", "hydra.sweep.dir=out", *QUICK
    )
    assert outcome.code == 1
    assert "data_dir='my/data' (MNIST not found)" in outcome.out
    assert names_left(tmp_path / "out") == {"multirun.yaml", "split_mnist"}


@pytest.mark.slow
def test_joblib_launcher(call: Call, tmp_path: Path):
    few = [text for text in QUICK if not text.startswith("stream.n_tasks")]
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=out"]
    outcome = call("-m", "method=naive", "stream.n_tasks=2,50", *few, *joblib)
    assert outcome.code == 1
    assert "Sweep: 1 of 2 jobs finished" in outcome.out
    assert "10 classes for 50 tasks" in outcome.out
    in_processes = results(tmp_path / "out")
    assert len(in_processes) == 1
    assert names_left(tmp_path / "out") == {"multirun.yaml", "split_digits"}

    assert call("-m", "method=naive", "stream.n_tasks=2", *few).code == 0
    (one,), (other,) = in_processes.items(), results(tmp_path / "runs").items()
    assert one[0] == other[0]  # the same folder, the same numbers
    assert one[1]["accuracy_matrix"] == other[1]["accuracy_matrix"]
