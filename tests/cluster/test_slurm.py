"""Jobs of a real Slurm that are preempted, requeued, and end as if they had not been."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.kill_compare import contents, differences
from tests.cluster.slurm import Slurm, missing

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(missing()), reason=f"needs {', '.join(missing())}"),
]
ROOT = Path(__file__).parents[2]
PLACES = ("training", "consolidation", "evaluation", "between tasks")
ARGUMENTS = ["method=[ewc,er]", "limit_tasks=3", "trainer.max_epochs=2", "reference_methods=[]", "accelerator=cpu"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def submit(slurm: Slurm, folder: Path, place: str, nodes: int = 1, tasks: int = 1, *options: str) -> str:
    """A job that waits at a place, by the batch script that we ship; returns its number."""
    folder.mkdir(parents=True, exist_ok=True)
    text = (ROOT / "scripts" / "slurm" / "train.sbatch").read_text()
    waiting = f"{sys.executable} -m tests.cluster.job '{place}' {folder / 'marker'}"
    text = text.replace('"${PYTHON:-python}" -m lightning_cl', waiting)
    script = folder / "train.sbatch"
    script.write_text(text)
    run = folder / "run"
    size = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--cpus-per-task=1"]
    command = ["sbatch", "--parsable", f"--output={folder}/job.out", f"--chdir={folder}", *size, *options, str(script)]
    return slurm.run(*command, *ARGUMENTS, f"hydra.run.dir={run}")


def reached(folder: Path, slurm: Slurm, job: str) -> None:
    deadline = time.monotonic() + 500
    while not (folder / "marker").exists():
        assert time.monotonic() < deadline, (folder / "job.out").read_text()[-2000:]
        assert "FAILED" not in slurm.state(job), (folder / "job.out").read_text()[-2000:]
        time.sleep(0.1)


def same(one: Path, two: Path) -> list[str]:
    return differences(contents(one / "run"), contents(two / "run"))


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs that nothing happens to: on one node, and on two nodes of two processes each."""
    base = tmp_path_factory.mktemp("undisturbed")
    jobs = {(nodes, tasks): submit(slurm, base / f"{nodes}x{tasks}", "nowhere", nodes, tasks) for nodes, tasks in SIZES}
    for (nodes, tasks), job in jobs.items():
        assert slurm.wait(job) == "COMPLETED", (base / f"{nodes}x{tasks}" / "job.out").read_text()[-3000:]
    return {size: base / f"{size[0]}x{size[1]}" for size in jobs}


SIZES = [(1, 1), (2, 1), (2, 2)]


def interrupt(slurm: Slurm, job: str, how: str) -> None:
    if how == "requeue":
        slurm.run("scontrol", "requeue", job)
    elif how in ("TERM", "USR1", "USR2"):
        slurm.run("scancel", f"--signal={how}", job)


@pytest.mark.parametrize("size", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("place", "how"), list(zip(PLACES, ("requeue", "TERM", "USR1", "requeue"), strict=True)))
def test_interrupted_and_requeued(
    slurm: Slurm, undisturbed: Any, tmp_path: Path, place: str, how: str, size: tuple[int, int]
):
    job = submit(slurm, tmp_path, place, *size)
    reached(tmp_path, slurm, job)
    interrupt(slurm, job, how)
    assert slurm.wait(job) == "COMPLETED", (tmp_path / "job.out").read_text()[-3000:]
    assert slurm.run("scontrol", "show", "job", job).partition("Restarts=")[2].partition(" ")[0] == "1"
    assert json.loads((tmp_path / "run" / "results.json").read_text())["status"] == "finished"
    assert same(tmp_path, undisturbed[size]) == []


def test_a_time_limit(slurm: Slurm, undisturbed: Any, tmp_path: Path):
    """Slurm's limits are minutes: the signal comes 60 s (its own margin included) before the end of the second."""
    job = submit(slurm, tmp_path, "training", 1, 1, "--time=2", "--signal=USR1@60")
    assert slurm.wait(job) == "COMPLETED", (tmp_path / "job.out").read_text()[-3000:]
    assert (
        "stopped by SIGUSR1; the same command goes on, when Slurm runs it again" in (tmp_path / "job.out").read_text()
    )
    assert same(tmp_path, undisturbed[(1, 1)]) == []


def test_two_processes_on_each_of_two_nodes(slurm: Slurm, undisturbed: Any, tmp_path: Path):
    job = submit(slurm, tmp_path, "training", 2, 2)
    reached(tmp_path, slurm, job)
    interrupt(slurm, job, "TERM")
    assert slurm.wait(job) == "COMPLETED", (tmp_path / "job.out").read_text()[-3000:]
    assert same(tmp_path, undisturbed[(2, 2)]) == []


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, tmp_path: Path):
    job = submit(slurm, tmp_path, "training")
    reached(tmp_path, slurm, job)
    slurm.run("scancel", job)
    assert slurm.wait(job) == "CANCELLED"


def test_a_sweep_is_an_array_job(slurm: Slurm, undisturbed: Any, tmp_path: Path):
    """Two jobs by the launcher; the first is preempted."""
    import subprocess

    command = [sys.executable, "-m", "lightning_cl", "-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1",
               "seed=0,1", f"hydra.sweep.dir={tmp_path / 'runs'}", "hydra.launcher.signal_delay_s=30",
               *(a for a in ARGUMENTS if a != "reference_methods=[]")]  # fmt: skip
    sweep = subprocess.Popen(command, env=slurm.environment, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 500
    while not (found := slurm.run("squeue", "-h", "-t", "RUNNING", "-r", "-o", "%i").split()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    while not (progress := list((tmp_path / "runs").rglob("sequence.json"))):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for job in found:
        slurm.run("scancel", "--signal=USR2", job)
    said, _ = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, said
    runs = sorted(file.parent for file in (tmp_path / "runs").rglob("results.json"))
    assert len(runs) == 2
    assert progress
    for run in runs:
        assert json.loads((run / "results.json").read_text())["status"] == "finished"
