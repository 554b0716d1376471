"""What is loaded from Hugging Face: from a local folder, the cache, or the hub where there is a network."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning_cl.errors import InputError


def load(from_pretrained: Callable[..., Any], name: str | Path, what: str, hint: str, **options: Any) -> Any:
    """``from_pretrained(name, **options)``; a hub name is looked for in the cache first.

    Without a network a name that is not in the cache is refused at once, not after the hub library's retries.

    Args:
        from_pretrained: For example ``AutoModel.from_pretrained``.
        name: A folder, or a name on the hub.
        what: What is looked for, for the message.
        hint: What to do where it cannot be had.
        **options: Arguments of ``from_pretrained``.

    Raises:
        InputError: For a folder or name from which it cannot be loaded.
    """
    given = f"{what} {str(name)!r}"
    with _quiet():
        if Path(name).is_dir():
            return _loaded(
                from_pretrained, str(name), given, "a folder that save_pretrained has written", hint, options
            )
        if str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1:
            raise InputError(given, "an existing folder, or a name on the hub", hint)
        with contextlib.suppress(Exception):
            return from_pretrained(str(name), local_files_only=True, **options)
        if not _hub_is_there():
            raise InputError(f"{given}, no folder, nor in the cache", "a network connection to download it", hint)
        return _loaded(from_pretrained, str(name), given, "a model on the hub", hint, options)


def _loaded(call: Callable[..., Any], name: str, given: str, expected: str, hint: str, options: dict[str, Any]) -> Any:
    try:
        return call(name, **options)
    except ImportError:
        raise
    except Exception as error:  # a file may be broken in any way
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{given} ({type(error).__name__}: {said})", expected, hint) from error


def file_beside(name: str | Path, file: str) -> Path | None:
    """A file of a folder, or of a name on the hub; None where there is none."""
    if Path(name).is_dir():
        return Path(name) / file if (Path(name) / file).is_file() else None
    from huggingface_hub import hf_hub_download

    for only_local in (True, False) if _hub_is_there() else (True,):
        with contextlib.suppress(Exception):
            return Path(hf_hub_download(str(name), file, local_files_only=only_local))
    return None


def require_transformers(what: str = "text") -> Any:
    """The package, imported when it is needed.

    Args:
        what: What needs it, for the message.

    Raises:
        InputError: If it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"{what} without the package transformers ({error})", "transformers", "pip install 'lightning-cl[hf]'"
        ) from error
    return transformers


def _hub_is_there() -> bool:
    """Whether the hub's host can be found; behind a proxy nobody can tell."""
    from huggingface_hub import constants

    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars over files that are read in a moment, and tables of what is refused in one line."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
