"""Samples deleted from a run folder, which stays one that goes on."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import checksum, load_state, read_state, save_state, write_text
from lightning_cl.memory._deleted import DeletedIds
from lightning_cl.memory._forgetting import check_named, forget_in_files, forget_in_state, is_on_disk, memory_states
from lightning_cl.memory._ids import plain_ids
from lightning_cl.memory._owner import NAME as OWNER
from lightning_cl.memory._owner import owner_of
from lightning_cl.sequence.lock import RunLock
from lightning_cl.sequence.records import read_record, write_record

OPTION = re.compile(r"callbacks\.[^.]+\.(path|deletion_log)")


def forget_samples(run_dir: str | Path, ids: Any) -> int:
    """Delete samples by their ids from the memories that a run folder holds: its checkpoints and files.

    They are overwritten in every boundary's learner file, in a fit that was stopped, and in the files of a memory on
    disk; the checksums are renewed, so that the run goes on, and does not store them again. The deletion log of its
    config, if it has one, learns of it too. What was learnt from the samples stays in the weights.

    Args:
        run_dir: The run folder; nobody may be working in it.
        ids: Integers or strings. With data of ours and ``deletion_log`` set, positions in the training data set.

    Returns:
        How many samples the run's newest state held.

    Raises:
        InputError: If it is no run folder, is in use, or its memory has samples without ids; then nothing is changed.
    """
    run_dir, wanted = Path(run_dir), plain_ids(ids)
    runs = [run_dir, *sorted(folder.parent for folder in run_dir.glob("references/*/sequence.json"))]
    found = [_SavedRun(folder) for folder in runs]
    for run in found:
        run.check()
    return sum(run.forget(wanted) for run in found)


class _SavedRun:
    """The checkpoints of one run folder that may hold samples."""

    def __init__(self, run_dir: Path) -> None:
        record = read_record(run_dir / "sequence.json")
        if record is None:
            raise InputError(
                f"{str(run_dir)!r} without a sequence.json that can be read",
                "a run folder",
                "give the folder of one run",
            )
        self.run_dir, self.newest, self.config = run_dir, record, record.get("config", {})
        self.folder = run_dir / "checkpoints"
        self.on_disk: dict[Path, list[dict[str, Any]]] = {}

    @property
    def files(self) -> list[Path]:
        """Oldest first, so that a boundary is whole at every moment; then those of a fit."""
        return [*sorted(self.folder.glob("task*.learner.ckpt")), *sorted(self.folder.glob("fit-*.ckpt"))]

    def check(self) -> None:
        """Refuse what cannot be done, before anything is, and find the memories on disk."""
        RunLock(self.run_dir).release()
        for file in self.files:
            for state in memory_states(read_state(file, "remove the file")):
                check_named(state, file)
                if is_on_disk(state):
                    self.on_disk.setdefault(self._folder_of(state), []).append(state)

    def forget(self, ids: Sequence[int | str]) -> int:
        """Delete the samples; how many the newest state held."""
        lock = RunLock(self.run_dir)
        try:
            for half in self.folder.glob(".*.tmp"):  # of a kill; samples are in there too
                half.unlink()
            for log in [*self._options("deletion_log"), *(folder / "deleted.txt" for folder in self.on_disk)]:
                DeletedIds(0, log).add(ids)
            in_files = [forget_in_files(folder, states, ids) for folder, states in self.on_disk.items()]
            return sum(in_files) + max([self._forget_in(file, ids) for file in self.files], default=0)
        finally:
            lock.release()

    def _forget_in(self, file: Path, ids: Sequence[int | str]) -> int:
        before, content = checksum(file), load_state(file)
        states = list(memory_states(content))
        if not states:
            return 0
        held = [forget_in_state(state, ids, self._folder_of(state) if is_on_disk(state) else None) for state in states]
        written = file.with_name(f".{file.name}.forget.tmp")
        save_state(written, content)
        after = checksum(written)
        # a kill in here leaves a file that is as one of its two checksums says
        self._seal(file, before, f"{before} {after}")
        os.replace(written, file)
        self._seal(file, after, after)
        return sum(held)

    def _seal(self, file: Path, known: str, sums: str) -> None:
        """Write these checksums for a file, if it was whole: ``known`` is among those that are noted."""
        if file.name.startswith("fit-"):
            notes = file.with_suffix(".sum")
            if notes.is_file() and known in notes.read_text().split():
                write_text(notes, sums)
            return
        stem = file.name.removesuffix(".learner.ckpt")
        newest = stem == self.newest["checkpoint"]
        record = self.newest if newest else read_record(self.folder / f"{stem}.json")
        if record is not None and known in record.get("checksums", {}).get(file.name, "").split():
            record["checksums"][file.name] = sums
            write_record(self.run_dir, record, newest=newest)

    def _folder_of(self, state: dict[str, Any]) -> Path:
        """Where the files of a memory on disk are."""
        token = state["table"].get("owner")
        places = [*self._options("path"), *(file.parent for file in self.run_dir.rglob(OWNER))]
        for place in places:
            if token is not None and owner_of(place) == token:
                return place
        raise InputError(
            f"{str(self.run_dir)!r} with a memory on disk whose folder is not found",
            "the folder that the run's config names, or one inside the run folder",
            "move it into the run folder for this",
        )

    def _options(self, name: str) -> list[Path]:
        """Files or folders that the run's config names; relative ones are inside the run folder."""
        values = {key: value for key, value in self.config.items() if OPTION.fullmatch(key) and isinstance(value, str)}
        return [self.run_dir / value for key, value in values.items() if key.endswith(f".{name}")]
