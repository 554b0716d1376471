"""The folder and the file that a memory is told to write."""

from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.memory._owner import NAME

LONGEST = 200  # bytes of a name: a file system allows 255
#: What is in the folder of a memory before it says whose it is: rows, deletions, folders of processes and of BiC.
OWN = ("*.bin", "*.tmp", "deleted*", "rank*", "validation", ".*")


def check_folder(path: Any) -> None:
    """See that ``path`` may be the folder of a memory's files: it would remove files there, so it gets its own.

    Raises:
        InputError: If it has no name of its own, is a file, or holds what no memory has written.
    """
    if not _is_name(path):
        raise InputError(f"path={str(path)[:100]!r}", "a folder of its own", "path='memory'")
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"path={str(path)!r}, a file", "a folder of its own", "path='memory'")
    if not folder.is_dir() or (folder / NAME).is_file():
        return
    entries = sorted(folder.iterdir())
    strange = next((entry for entry in entries if not any(entry.match(pattern) for pattern in OWN)), None)
    if strange is not None:
        given = f"path={str(path)!r}, which holds {strange.name!r}"
        raise InputError(given, "an empty folder, or that of a memory", "give the memory a folder of its own")


def check_log(path: Any) -> None:
    """See that ``path`` may be the file of a memory's deletions.

    Raises:
        InputError: If it has no name of its own, or is a folder.
    """
    if not _is_name(path):
        raise InputError(f"deletion_log={str(path)[:100]!r}", "a file", "deletion_log='deleted.txt'")
    if Path(path).is_dir():
        raise InputError(f"deletion_log={str(path)!r}, a folder", "a file", f"deletion_log='{path}/deleted.txt'")


def _is_name(path: Any) -> bool:
    """Whether a path ends in a name, so that it is not empty, the root, or where somebody stands."""
    if not isinstance(path, str | Path) or "\0" in str(path):
        return False
    name = Path(path).name
    return bool(name.strip()) and name != ".." and len(name.encode(errors="replace")) <= LONGEST
