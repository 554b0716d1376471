"""Whose the files in a memory's folder are."""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from lightning_cl.errors import InputError
from lightning_cl.files import write_json

NAME = "owner.json"


class Owner:
    """A mark in a memory's folder, so that no other memory writes over its files, or takes them for its own.

    The mark is drawn from the operating system, not from a generator: two runs with one seed are two owners. It is in
    the folder and in every state. A memory that starts anew takes over the folder of its predecessor in the same run;
    any other folder that has an owner is refused.

    Args:
        folder: The memory's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        #: None for states of earlier versions, which have no mark
        self.token: str | None = secrets.token_hex(16)
        self.claimed = False
        self.run: Path | None = None
        self.name = ""

    @property
    def own_folder(self) -> Path:
        """Where this process's files are."""
        return self.folder / f"rank{_rank()}" if _rank() else self.folder

    def check_new(self) -> None:
        """See that a memory without samples may have the folder.

        Raises:
            InputError: If it is another's.
        """
        found = self._read()
        if self.claimed or found is None or found["owner"] == self.token or self._is_predecessor(found):
            return
        raise InputError(
            f"path={str(self.folder)!r}, where the samples of another memory are",
            "a folder of its own for each memory",
            "choose another path, or remove the folder if nothing goes on from it",
        )

    def claim(self) -> None:
        """Take the folder for a memory without samples, and remove what its predecessor has left.

        Raises:
            InputError: If it is another's.
        """
        if self.claimed:
            return
        if _rank() == 0:  # the others may come when the mark of the first is there already
            self.check_new()
            self._write()
        for file in [*self.own_folder.glob("*.bin"), *self.own_folder.glob("*.tmp")]:
            file.unlink(missing_ok=True)
        self.claimed = True

    def check_loaded(self, token: str | None, *, empty: bool) -> None:
        """See that the folder is that of a state with this mark; go on as its owner.

        Raises:
            InputError: If it is another's.
        """
        found = self._read()
        if not empty and found is not None and (found["owner"] != token or self._runs_elsewhere(found)):
            raise InputError(
                f"path={str(self.folder)!r}, where the samples of another memory are, not those of this state",
                "the folder with which the state was saved, used by one run",
                "give that folder, or start anew with another path",
            )
        self.token, self.claimed = token, not empty
        if self.claimed and token is not None and _rank() == 0 and found != self._content():
            self._write()

    def _is_predecessor(self, found: dict[str, Any]) -> bool:
        return self.run is not None and {**found, "owner": self.token} == self._content()

    def _runs_elsewhere(self, found: dict[str, Any]) -> bool:
        """Whether the files are those of a run folder that was copied, and is still there; it may also be moved."""
        known, own = found["run"], self._content()["run"]
        return None not in (known, own) and known != own and (self.folder / known / "sequence.json").is_file()

    def _content(self) -> dict[str, Any]:
        # relative, so that a run that is moved together with the folder stays the same
        run = None if self.run is None else os.path.relpath(self.run.resolve(), self.folder.resolve())
        return {"version": 1, "owner": self.token, "run": run, "name": self.name}

    def _read(self) -> dict[str, Any] | None:
        return _read(self.folder)

    def _write(self) -> None:
        write_json(self.folder / NAME, self._content())


def _rank() -> int:
    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def owner_of(folder: Path) -> str | None:
    """The mark in a folder, None if there is none."""
    found = _read(folder)
    return None if found is None else found["owner"]


def _read(folder: Path) -> dict[str, Any] | None:
    try:
        found = json.loads((folder / NAME).read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        found = None
    # a mark that cannot be read is somebody's
    good = isinstance(found, dict) and {"owner", "run"} <= found.keys()
    return found if good else {"owner": "", "run": None}
