"""Files that are either the old one or the whole new one, never half of it."""

import os
from pathlib import Path

from lightning_cl.errors import InputError
from lightning_cl.files import FULL, refuse_full_disk


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Write ``content`` beside ``path`` and rename it into place; text as UTF-8.

    Raises:
        InputError: The folder cannot be made or written, or the disk is full.
    """
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    # a name of our own and not mkstemp's: that one makes the file private to its owner
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in FULL:
            refuse_full_disk(path, error)
        reason = error.strerror or str(error)
        raise InputError(
            f"cannot write {str(path)!r} ({reason})",
            "a folder that can be written",
            "choose another with hydra.run.dir=DIR, or --output DIR of lightning-cl report",
        ) from error
    return path
