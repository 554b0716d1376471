"""A sweep whose launcher is killed: the same command runs what is missing, and nothing else."""

from pathlib import Path

import pytest

from tests.command_line import Call, call
from tests.sweeps import SHORT, all_quiet, finished, killed_after, written

__all__ = ["call"]
PARALLEL = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.slow
def test_eight_jobs(call: Call, tmp_path: Path):
    out, sweep = tmp_path / "out", ["method=naive,er", "seed=0,1,2,3", *SHORT]
    killed_after(3, [*sweep, *PARALLEL], out)
    before = finished(out)
    at = written(out, before)
    all_quiet(out)  # the jobs at work notice that nobody waits for them
    assert 3 <= len(before) < 8
    outcome = call("-m", *sweep, "hydra.sweep.dir=out")  # in this process: the launcher is no part of a job
    assert outcome.code == 0, outcome.err
    assert "Sweep: 8 of 8 jobs finished" in outcome.out
    after = finished(out)
    assert len(after) == 8
    assert {folder: after[folder] for folder in before} == before
    assert written(out, before) == at


@pytest.mark.long
def test_sixty_jobs(call: Call, tmp_path: Path):
    out, seeds = tmp_path / "out", ",".join(map(str, range(20)))
    sweep = ["method=naive,er,lwf", f"seed={seeds}", *SHORT, *PARALLEL]
    killed_after(25, sweep, out)
    before = finished(out)
    at = written(out, before)
    assert 25 <= len(before) < 60
    outcome = call("-m", *sweep, "hydra.sweep.dir=out")  # at once: it waits for jobs that are still stopping
    assert outcome.code == 0, outcome.err
    assert "Sweep: 60 of 60 jobs finished" in outcome.out
    after = finished(out)
    assert len(after) == 60
    assert {folder: after[folder] for folder in before} == before
    assert written(out, before) == at
