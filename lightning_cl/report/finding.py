"""Finding runs under folders."""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError

from .run import Run

RESULTS = "results.json"
REFERENCES = "references"
SOURCE = "source"
SCHEMA = 1


def read_run(folder: Path) -> Run:
    """The run in ``folder``.

    Raises:
        InputError: There is no results.json, or it cannot be read, or it is of another schema.
    """
    path = folder / RESULTS
    expected, hint = f"a {RESULTS} of schema {SCHEMA}", "point to a run folder that lightning-cl wrote"
    try:
        results: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r} ({error.strerror or error})", expected, hint) from error
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON ({error})", expected, hint) from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        found = results.get("schema") if isinstance(results, dict) else type(results).__name__
        raise InputError(f"schema={found!r} in {str(path)!r}", expected, "read it with the version that wrote it")
    matrix = results.get("accuracy_matrix")
    if not isinstance(matrix, list) or not all(isinstance(row, list | None) for row in matrix):
        raise InputError(f"accuracy_matrix={matrix!r} in {str(path)!r}", "a list of rows", hint)
    kinds = {"metric": dict, "per_task": list, "config": dict, "compute": dict, "reference_methods": dict}
    wrong = [key for key, kind in kinds.items() if not isinstance(results.get(key), kind | None)]
    if wrong or not all(isinstance(task, dict) for task in results.get("per_task") or []):
        raise InputError(f"{(wrong or ['per_task'])[0]!r} of another kind in {str(path)!r}", expected, hint)
    for key in ("method", "stream"):
        if not results.get(key):
            raise InputError(f"no {key!r} in {str(path)!r}", expected, hint)
    return Run(results, folder)


def _folders(path: Path) -> Iterable[Path]:
    for folder, inner, files in os.walk(path):
        # reference runs repeat what the run around them already says, and what it started from is another task;
        # pointed at directly they are runs like any other
        is_run = RESULTS in files or ".hydra" in inner  # the second has not come to its results yet
        left_out = {REFERENCES, SOURCE} if is_run else {REFERENCES}
        inner[:] = sorted(name for name in inner if name not in left_out)
        if RESULTS in files:
            yield Path(folder)


def find(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """All runs under ``paths``, each once, and one line for each results file that could not be read.

    Raises:
        InputError: A path does not exist, or there is no readable run under any of them.
    """
    paths = [Path(path) for path in paths]
    runs: dict[Path, Run] = {}
    unreadable: dict[Path, str] = {}
    hint = "give run folders, or a folder that holds some"
    for path in paths:
        if not path.exists():
            raise InputError(f"no such folder: {str(path)!r}", "a run folder or a folder of runs", hint)
        folders = _folders(path) if path.is_dir() else [path.parent] if path.name == RESULTS else []
        for folder in folders:
            key = folder.resolve()
            if key in runs or key in unreadable:
                continue
            try:
                runs[key] = read_run(folder)
            except InputError as error:
                unreadable[key] = error.given
    if not runs:
        where = ", ".join(repr(str(path)) for path in paths)
        found = "; ".join(unreadable.values())
        raise InputError(
            f"no readable {RESULTS} under {where}" + (f" ({found})" if found else ""), "at least one", hint
        )
    return list(runs.values()), list(unreadable.values())


def gather(paths: Iterable[Path]) -> list[Run]:
    """All runs under ``paths``, however deep, each once, in the order of their folders.

    Runs in a folder named ``references`` inside another folder are left out; a path that is such a folder is read.

    Warns:
        UserWarning: For each results file that cannot be read, naming it.

    Raises:
        InputError: A path does not exist, or there is no readable run under any of them.
    """
    runs, unreadable = find(paths)
    for line in unreadable:
        warnings.warn(f"left out: {line}", UserWarning, stacklevel=2)
    return runs
