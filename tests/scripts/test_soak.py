"""A long run costs no more per task at its end than at its start."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


def soak(n_tasks: int, run_dir: Path) -> dict[str, Any]:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.soak(n_tasks, run_dir)


@pytest.mark.slow
def test_thirty_tasks(tmp_path: Path):
    found = soak(30, tmp_path)
    assert found["tasks"] == 30
    assert found["step_ratio_to_plain"] < 1.5  # a growing step would be told; a busy machine is forgiven
    assert found["memory_growth_mb_per_task"] < 2
    assert found["checkpoint_growth_bytes_per_task"] < 200


@pytest.mark.long
def test_two_hundred_tasks(tmp_path: Path):
    found = soak(200, tmp_path)
    assert abs(found["step_ratio_to_plain"] - 1) < 0.05
    assert found["memory_growth_mb_per_task"] < 1
    assert found["checkpoint_growth_bytes_per_task"] < 200  # the list of the classes of each task
