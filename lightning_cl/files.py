"""Files that are whole or not there: written beside their place, flushed to disk, then renamed."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_cl.errors import InputError


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
    except PermissionError as error:
        raise InputError(
            f"no permission to write {str(path)!r}", "a writable folder", "choose another with hydra.run.dir=FOLDER"
        ) from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() and os.access(
            temporary.parent, os.W_OK
        ) else None


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
    """Write a checkpoint of tensors and primitives atomically."""
    import torch

    atomic_write(path, lambda file: torch.save(state, file))


def load_state(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`save_state` wrote; nothing in the file is executed (``weights_only=True``)."""
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


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


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
