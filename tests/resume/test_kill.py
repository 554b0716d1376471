"""The short form of ``scripts/kill_test.py``: real SIGKILLs of real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path):
    report = tmp_path / "kills.json"
    command = [sys.executable, str(ROOT / "scripts" / "kill_test.py"), "--runs", "6", "--short", "--json", str(report)]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(report.read_text())
    assert found["summary"]["identical"] == len(found["runs"]) == 6
    assert set(found["summary"]["runs_by_kind"].values()) == {1}
    assert found["summary"]["killed_twice"] >= 1
    assert found["summary"]["kills"] == 6 + found["summary"]["killed_twice"]
    assert 0 < found["summary"]["most_steps_repeated"] <= found["summary"]["checkpoint_every_n_steps"]
