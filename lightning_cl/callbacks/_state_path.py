"""Files that a callback is told to write, and the one in which it keeps its state between processes."""

from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.files import read_state

LONGEST = 200  # bytes of a name: a file system allows 255, and a file half written has a longer one
EXPECTED = "a file that can be written"


def checked_path(path: str | Path | None, key: str = "state_path") -> Path | None:
    """The path that an argument ``key`` gives, if it can be a file's."""
    if path is None:
        return None
    name = Path(path).name
    if name in ("", "..") or "\0" in str(path) or len(name.encode(errors="replace")) > LONGEST:
        raise InputError(f"{key}={str(path)[:100]!r}", EXPECTED, f"set {key}=FOLDER/NAME.ckpt")
    return Path(path)


def usable(path: Path, key: str = "state_path") -> Path:
    """The path, if something can be written there; better known before training than behind it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that the file system does not take is a ValueError
        raise InputError(f"{key}={str(path)[:100]!r} ({error})", EXPECTED, f"give another {key}") from error
    if folder:
        raise InputError(f"{key}={str(path)!r}, a folder", EXPECTED, f"give another {key}")
    return path


def load_from(callback: Any, path: Path) -> None:
    """Read a callback's state.

    Raises:
        InputError: If the file cannot be read, or holds another method's state.
    """
    hint = "give another state_path, or delete it to start anew"
    state = read_state(path, hint)
    try:
        callback.load_state_dict(state)
    except InputError as error:
        raise InputError(f"state_path={str(path)!r}: {error.given}", error.expected, error.hint) from error
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        given = f"state_path={str(path)!r} ({type(error).__name__}: {error})"
        raise InputError(given, f"a state that {type(callback).__name__} has written", hint) from error
