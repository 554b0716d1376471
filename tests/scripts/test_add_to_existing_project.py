"""The example stands alone, is short, and shows what it says."""

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "add_to_existing_project.py"


def test_both_callbacks_forget_less(tmp_path: Path):
    text = SCRIPT.read_text()
    assert len(text.splitlines()) < 80
    assert re.findall(r"(?m)^.*lightning_cl.*$", text) == ["from lightning_cl import EWC, Replay"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.findall(r"(?m)^(\w+) +first data set ([\d.]+)% -> ([\d.]+)%, forgetting ([\d.-]+)%; second", done.stdout)
    assert [name for name, *_ in found] == ["without", "EWC", "Replay"]
    (_, learned, _, without), *others = found
    assert float(learned) > 85, "the first data set is learned"
    assert float(without) > 20, "there is something to forget"
    for name, _, _, forgetting in others:
        assert float(forgetting) < float(without) / 2, name
