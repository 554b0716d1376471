"""What is known of a boundary beside its checkpoints: the progress, and checksums that tell damaged files."""

import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import as_json, checksum, write_text

log = logging.getLogger(__name__)
NAME = re.compile(r"task\d{4,}-stage\d+")


def write_record(run_dir: Path, record: dict[str, Any], *, newest: bool = True) -> None:
    """Write a boundary's record beside its checkpoints, then as ``sequence.json``, which says where the run is.

    Args:
        run_dir: The run folder.
        record: Plain values; ``checkpoint`` is the boundary's name.
        newest: Whether the run goes on from this boundary; else ``sequence.json`` stays as it is.
    """
    text = as_json({**record, "checksum": _seal(json.loads(as_json(record)))})
    write_text(run_dir / "checkpoints" / f"{record['checkpoint']}.json", text)
    if newest:
        write_text(run_dir / "sequence.json", text)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record; None if it is not there, cannot be read, or is not what was written."""
    try:
        record = json.loads(path.read_text())
        seal = record.pop("checksum", None)
        # the name becomes a path: it cannot lead out of the folder
        named = NAME.fullmatch(record["checkpoint"]) and "/" not in "".join(record.get("checksums", {}))
        return record if named and record["version"] == 1 and seal in (None, _seal(record)) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest_intact(run_dir: Path) -> dict[str, Any]:
    """The record of the newest boundary whose files are all as they were written.

    Raises:
        InputError: If there is none.
    """
    folder = run_dir / "checkpoints"
    newest = read_record(run_dir / "sequence.json")
    damaged = [] if newest else [str(run_dir / "sequence.json")]
    older = [read_record(file) for file in sorted(folder.glob("task*-stage*.json"), reverse=True)]
    seen: set[str] = set()
    for record in [newest, *older]:
        if record is None or record["checkpoint"] in seen:
            continue
        seen.add(record["checkpoint"])
        # two, of which one holds, while a file is being replaced
        known = {name: sums.split() for name, sums in record.get("checksums", {}).items()}
        bad = [name for name, sums in known.items() if _checksum(folder / name) not in sums]
        if not bad:
            if damaged:
                log.warning(
                    "%s damaged; going on from the boundary before: task %d, stage %d",
                    ", ".join(damaged),
                    record["progress"]["task"],
                    record["progress"]["stage"],
                )
                write_record(run_dir, record)  # what is damaged is not the newest boundary any more
            return record
        damaged += [str(folder / name) for name in bad]
    raise InputError(
        f"{', '.join(map(repr, damaged))} cannot be read, or not as written",
        "one intact boundary",
        "resume=never starts anew",
    )


def _seal(record: dict[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=16).hexdigest()


def _checksum(path: Path) -> str | None:
    try:
        return checksum(path)
    except OSError:
        return None
