"""What ``kill_test.py`` compares: what finished runs have left, to the bit, and steps that were done twice."""

import json
from pathlib import Path
from typing import Any

import torch

from lightning_cl.files import load_state

# times, and checksums of files that have the same content in other bytes (pickle's memo)
NOT_COMPARED = ("seconds", "peak_rss", "peak_rss_bytes", "checksum", "checksums")
OWNER = "owner"  # whose the files of a memory on disk are: drawn anew for every memory


def contents(out: Path) -> dict[str, Any]:
    """What a finished run folder holds, without times."""
    found: dict[str, Any] = {}
    for file in sorted(out.rglob("*")):
        name = str(file.relative_to(out))
        if file.suffix == ".ckpt":
            found[name] = load_state(file)  # weights_only=True
        elif file.name in ("sequence.json", "results.json"):
            found[name] = _without_times(json.loads(file.read_text()))
        elif file.suffix == ".tmp":
            found[name] = "left behind"
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in NOT_COMPARED}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Paths of the entries that are not the same, bit for bit."""
    if isinstance(one, dict) and isinstance(two, dict):
        missing = [f"{where}/{key} is in one only" for key in one.keys() ^ two.keys()]
        both = (one.keys() & two.keys()) - {OWNER}
        return missing + [d for key in both for d in differences(one[key], two[key], f"{where}/{key}")]
    if isinstance(one, list | tuple) and isinstance(two, list | tuple) and len(one) == len(two):
        return [d for i, (a, b) in enumerate(zip(one, two, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        same = one.dtype == two.dtype and one.shape == two.shape
        same = same and one.contiguous().numpy().tobytes() == two.contiguous().numpy().tobytes()
        return [] if same else [f"{where}: tensors differ"]
    return [] if type(one) is type(two) and one == two else [f"{where}: {one!r} and {two!r}"]


def repeated(log: Path) -> list[int]:
    """For every time the run went on: the steps that it did again."""
    parts = [part.splitlines() for part in log.read_text().split("start\n")[1:]] if log.is_file() else []
    return [len(set(part) & {step for before in parts[:i] for step in before}) for i, part in enumerate(parts)][1:]
