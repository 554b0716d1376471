"""Files that are whole or not there: written beside their place, flushed to disk, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_cl.errors import InputError

# a disk, a quota or a permitted file size that is used up
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk and rename it to ``path``."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        refuse_full_disk(path, error)
        raise
    finally:
        # a file system that has gone does not hide what went wrong
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def refuse_full_disk(path: str | os.PathLike[str], error: Exception) -> None:
    """Say in one line that the disk or the folder is to blame for an error in writing; nothing if it is not.

    Raises:
        InputError: If the disk is full, or nothing may be written there.
    """
    cause = next((e for e in (error, error.__cause__, error.__context__) if isinstance(e, OSError)), None)
    number = cause.errno if cause is not None else None
    if number in FULL:
        given = f"no space left to write {str(path)!r}"
        raise InputError(given, "a disk with room", "free some, and run the command again") from error
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        given = f"no permission to write {str(path)!r}"
        raise InputError(given, "a writable folder", "choose another with hydra.run.dir=FOLDER") from error


def checksum(path: str | os.PathLike[str]) -> str:
    """BLAKE2b of a file's bytes, 16 bytes in hexadecimal: tells a damaged file, not a forged one."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text atomically."""
    atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write JSON atomically; NaN becomes null."""
    write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """The text that :func:`write_json` writes."""
    return json.dumps(_finite(value), indent=1) + "\n"


def save_state(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors and primitives atomically; equal states are files of equal size."""
    import torch

    atomic_write(path, lambda file: torch.save(_interned(state), file))


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in the file is executed (``weights_only=True``)."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def read_state(path: str | os.PathLike[str], hint: str) -> dict[str, Any]:
    """:func:`load_state`, for a file that a person gave or that may be damaged.

    Raises:
        InputError: If it is not a file of tensors and plain values.
    """
    try:
        return load_state(path)
    except Exception as error:
        raise InputError(
            f"checkpoint {str(path)!r} cannot be read ({type(error).__name__})", "an intact checkpoint", hint
        ) from error


def loadable(value: Any) -> Any:
    """What of a value a checkpoint may hold: tensors, primitives and containers of them; other entries are left out."""
    import torch

    if isinstance(value, Mapping):
        return {key: loadable(item) for key, item in value.items() if _is_loadable(item)}
    if type(value) in (list, tuple):
        return type(value)(loadable(item) for item in value)
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _is_loadable(value: Any) -> bool:
    import torch

    if isinstance(value, Mapping):
        return all(isinstance(key, str | int | float | bool) for key in value)
    if type(value) in (list, tuple):
        return all(_is_loadable(item) for item in value)
    return value is None or type(value) in (str, int, float, bool, bytes) or isinstance(value, torch.Tensor)


def _interned(value: Any) -> Any:
    """The value with one object for equal strings: pickle writes an object once, and refers to it when it comes again,
    so that a state that has been read from a file would make a file of another size than the same that has not.
    """
    if type(value) in (dict, OrderedDict):
        found = type(value)((_interned(key), _interned(item)) for key, item in value.items())
        if hasattr(value, "_metadata"):  # of a module's state
            found._metadata = _interned(value._metadata)
        return found
    if type(value) in (list, tuple):
        return type(value)(_interned(item) for item in value)
    return sys.intern(value) if type(value) is str else value


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
