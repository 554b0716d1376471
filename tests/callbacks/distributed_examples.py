"""A script in processes, each of which leaves what it has found in ``rank<n>.pt`` of the folder it is given."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
# for scripts without a method's callback, which does it by itself
END = """
from lightning_cl._compat_exit import settle_if_connected

settle_if_connected()
"""


def in_two_processes(script: str, folder: Path, timeout: float = 240) -> tuple[Any, Any]:
    """What both ranks have found; Lightning starts the second."""
    one, two = in_processes(script, folder, 2, timeout)
    return one, two


def in_processes(script: str, folder: Path, ranks: int, timeout: float = 240) -> list[Any]:
    """What each of the ranks has found; Lightning starts all but the first."""
    file = folder / "train.py"
    file.write_text(script + END)
    names = ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    environment = {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(file), str(folder)], env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]
