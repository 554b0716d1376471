"""What is loaded from Hugging Face: from a local folder, the cache, or the hub where there is a network."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning_cl.errors import InputError, shortened

#: packages whose errors say that something could not be fetched
_NETWORK = ("httpx", "requests", "urllib3", "huggingface_hub")


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
    folder = Path(name).is_dir()
    with _quiet():
        if not folder:
            if str(name).startswith(("/", ".", "~")) or str(name).count("/") > 1:
                raise InputError(given, "an existing folder, or a name on the hub", hint)
            with contextlib.suppress(Exception):
                return from_pretrained(str(name), local_files_only=True, **options)
        # a file may be broken in any way
        with fetching(given, hint, folder=folder, also=Exception):
            return from_pretrained(str(name), **options)


@contextlib.contextmanager
def fetching(given: str, hint: str, *, folder: bool = False, also: type[Exception] = OSError) -> Iterator[None]:
    """Turn what goes wrong when something is loaded by its name into one line.

    Where the hub's host cannot even be found, only the cache is looked at: no retries, no lines about them.

    Args:
        given: What is looked for, for the message.
        hint: What to do where it cannot be had.
        folder: Whether it is in a local folder.
        also: Errors that say so beside those of the network.

    Raises:
        InputError: For a folder or name from which it cannot be loaded.
    """
    there = folder or _hub_is_there()
    try:
        with _offline(not there):
            yield
    except ImportError:
        raise
    except Exception as error:
        if not isinstance(error, also) and type(error).__module__.partition(".")[0] not in _NETWORK:
            raise
        if not there or _is_a_miss(error):
            raise InputError(
                f"{given}, neither a path nor in the cache", "a network connection to download it", hint
            ) from error
        expected = "a folder that save_pretrained has written" if folder else "a model on the hub"
        raise InputError(f"{given} ({type(error).__name__}: {shortened(error)})", expected, hint) from error


def _is_a_miss(error: BaseException | None) -> bool:
    """Whether it comes of a hub that did not answer, and nothing in the cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error.__context__
    return error is not None


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

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _offline(offline: bool) -> Iterator[None]:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


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
