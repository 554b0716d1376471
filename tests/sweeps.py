"""What tests of sweeps share: a sweep in a process of its own that is killed, and what it leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHORT = ["trainer.max_epochs=1", "reference_methods=[]", "stream.n_tasks=2", "model.backbone.hidden=[16]"]


def killed_after(n: int, arguments: list[str], folder: Path, limit: float = 500) -> None:
    """Start a sweep, and kill its launcher, and nothing else, when ``n`` jobs have finished."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "lightning_cl", "-m", *arguments, f"hydra.sweep.dir={folder}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + limit
        while len(finished(folder)) < n:
            assert process.poll() is None, "the sweep ended before it was killed"
            assert time.monotonic() < end, f"{len(finished(folder))} jobs after {limit} s"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def finished(folder: Path) -> dict[str, dict]:
    """Results of finished jobs by folder."""
    found = {}
    for file in folder.rglob("results.json"):
        try:
            results = json.loads(file.read_text())
        except (OSError, ValueError):
            continue
        if results["status"] == "finished" and (file.parent / "model.ckpt").is_file():
            found[str(file.parent.relative_to(folder))] = results
    return found


def written(folder: Path, runs: dict[str, dict]) -> dict[Path, int]:
    """When the checkpoints of these runs were written."""
    files = [file for run in runs for file in (folder / run).rglob("task*.ckpt")]
    return {file: file.stat().st_mtime_ns for file in files}


def all_quiet(folder: Path, limit: float = 200) -> None:
    """Wait until no orphan works in the folder any more."""
    end = time.monotonic() + limit
    while list(folder.rglob(".lock")):
        assert time.monotonic() < end, "an orphaned job goes on"
        time.sleep(0.1)
