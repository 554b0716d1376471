"""A kill between any two changes of the run folder: each change is an atomic rename or a removal."""

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from lightning_cl.errors import InputError
from tests.resume.helpers import contents, differences, learn, stream, trainer, without_times


@pytest.fixture
def moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    """(what comes next, copy of the folder "watched" right before it): what a kill at that moment leaves."""
    found: list[tuple[str, Path]] = []
    number = itertools.count()
    replace, unlink = os.replace, Path.unlink

    def copy(change: str, path: Path) -> None:
        watched = tmp_path / "watched"
        if watched in path.parents:
            found.append((f"{change} {path.name}", tmp_path / f"moment {next(number)}"))
            shutil.copytree(watched, found[-1][1])

    def replaced(source: Any, target: Any) -> None:
        copy("rename to", Path(target))
        replace(source, target)

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        if self.exists():
            copy("remove", self)
        unlink(self, missing_ok)

    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(Path, "unlink", unlinked)
    return found


def test_every_moment_of_a_run(tmp_path: Path, moments: list[tuple[str, Path]]):
    options = {
        "stream": stream(validation=0.25),
        "trainer": trainer(max_epochs=1),
        "batch_size": 5,
        "select": "best",
        "optimizer_state": "keep",
        "evaluate_random_init": True,
        "evaluate_every_n_steps": 2,
    }
    _, whole = learn(tmp_path / "watched", "ewc+er", **options)
    expected = contents(tmp_path / "watched")
    names = [name for name, _ in moments]
    for what in ("rename to sequence.json", "rename to results.json", "rename to model.ckpt",
                 "rename to fit-task0001-stage0.ckpt", "remove fit-task0000-stage0.ckpt"):  # fmt: skip
        assert what in names
    for name, folder in moments.copy():
        _, results = learn(folder, "ewc+er", **options)
        assert without_times(results) == without_times(whole), name
        assert differences(contents(folder), expected) == [], name
        assert [file.name for file in folder.rglob("*") if file.suffix == ".tmp" or "fit-" in file.name] == [], name


def test_every_moment_of_starting_anew(tmp_path: Path, moments: list[tuple[str, Path]]):
    """Of another run's folder nothing is taken over, wherever ``resume=never`` was killed while it cleared it."""
    expected = learn(tmp_path / "whole", batch_size=5)[1]
    learn(tmp_path / "watched", kill_at=("train end", 8))
    learn(tmp_path / "watched", batch_size=6, kill_at=("train end", 8))
    moments.clear()
    learn(tmp_path / "watched", batch_size=5, resume="never", kill_at=("batch end", 1))
    old = 0
    for name, folder in moments.copy():
        progress = folder / "sequence.json"
        if progress.is_file() and json.loads(progress.read_text())["config"]["batch_size"] == 6:
            old += 1  # nothing but the fit's checkpoint has been removed
            with pytest.raises(InputError, match="batch_size: 6 -> 5"):
                learn(folder, batch_size=5)
            continue
        _, results = learn(folder, batch_size=5)
        assert without_times(results) == without_times(expected), name
    assert 0 < old < len(moments)
