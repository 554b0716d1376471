"""Samples that may not come back."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf
from lightning_cl.functional.seeding import derive_seed

BYTES = 16


class DeletedIds:
    """The ids of deleted samples, as salted hashes (BLAKE2b, 16 bytes each).

    Hashes and not the ids themselves: the list has to be kept after the person's data are gone, and an id often names
    the person. The salt lies beside the hashes, so that this protects from reading the list, not from somebody who
    holds the file and tries a given id: that is what the list is for.

    Args:
        seed: Decides the salt.
        log: File to which every deletion is added at once, so that it holds even if the process is killed before the
            next checkpoint, and for checkpoints that are older than the deletion.
    """

    def __init__(self, seed: int, log: Path | None) -> None:
        self.salt = derive_seed(seed, "memory", "deleted").to_bytes(8, "big")
        self.log = log
        self.hashes: set[bytes] = set()
        self.read_log()

    def __len__(self) -> int:
        """Ids deleted."""
        return len(self.hashes)

    def add(self, ids: Leaf) -> None:
        """Remember these ids, for good."""
        new = [h for h in self._hashed(ids) if h not in self.hashes]
        self.hashes.update(new)
        if self.log is None or not new:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a") as file:
            if file.tell() == 0:
                file.write(f"salt {self.salt.hex()}\n")
            file.writelines(f"{h.hex()}\n" for h in new)
            file.flush()
            os.fsync(file.fileno())

    def among(self, ids: Leaf) -> Tensor:
        """Whether each of these ids has been deleted, (N,) bool."""
        return torch.tensor([h in self.hashes for h in self._hashed(ids)], dtype=torch.bool)

    def read_log(self) -> None:
        """Take up what the log says."""
        if self.log is None or not self.log.is_file():
            return
        first, *lines = self.log.read_text().splitlines() or [""]
        if not first.startswith("salt "):
            raise InputError(f"{str(self.log)!r}, which is no log of deletions", "a file of ours", "choose another")
        self.salt = bytes.fromhex(first.removeprefix("salt "))
        # a line that a kill has cut off was not yet promised to anybody
        self.hashes.update(bytes.fromhex(line) for line in lines if len(line) == 2 * BYTES)

    def state_dict(self) -> dict[str, Any]:
        """Salt and hashes."""
        flat = b"".join(sorted(self.hashes))
        return {"salt": self.salt.hex(), "hashes": torch.tensor(list(flat), dtype=torch.uint8).view(-1, BYTES)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned, and the log."""
        self.salt = bytes.fromhex(state["salt"])
        self.hashes = {bytes(row) for row in state["hashes"].tolist()}
        self.read_log()

    def _hashed(self, ids: Leaf) -> Iterable[bytes]:
        values = ids.tolist() if isinstance(ids, Tensor) else ids
        for value in values:
            text = f"{type(value).__name__}:{value}".encode()
            yield hashlib.blake2b(text, digest_size=BYTES, key=self.salt).digest()
