"""Samples that may not come back."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory._ids import plain_ids

BYTES = 16
HEADER = re.compile(r"salt ((?:[0-9a-f]{2})+)")
#: A hash, behind its salt; logs of earlier versions have one salt, in the first line.
LINE = re.compile(r"(?:((?:[0-9a-f]{2})+):)?([0-9a-f]{32})")

Pair = tuple[bytes, bytes]


class DeletedIds:
    """The ids of deleted samples, as salted hashes (BLAKE2b, 16 bytes each).

    Hashes and not the ids themselves: the list has to be kept after the person's data are gone, and an id often names
    the person. The salt lies beside the hashes, so that this protects from reading the list, not from somebody who
    holds the file and tries a given id: that is what the list is for. Memories with other seeds have other salts; each
    hash is kept with its own, and an id is looked for under all of them.

    Args:
        seed: Decides the salt of what is added here.
        log: File to which every deletion is added at once, so that it holds even if the process is killed before the
            next checkpoint, and for checkpoints that are older than the deletion. Several memories may share it.
    """

    def __init__(self, seed: int, log: Path | None) -> None:
        self.salt = derive_seed(seed, "memory", "deleted").to_bytes(8, "big")
        self.log = log
        self.hashes: dict[bytes, set[bytes]] = {}
        self.read_log()

    def __len__(self) -> int:
        """Hashes kept; an id that was deleted under two salts counts twice."""
        return sum(map(len, self.hashes.values()))

    def add(self, ids: Any) -> None:
        """Remember these ids, for good."""
        new = [(self.salt, h) for h in _hashed(plain_ids(ids), self.salt)]
        new = [pair for pair in new if pair not in self]
        self._take(new)
        self._write(new)

    def among(self, ids: Any) -> Tensor:
        """Whether each of these ids has been deleted, (N,) bool."""
        plain = plain_ids(ids)
        found = torch.zeros(len(plain), dtype=torch.bool)
        for salt, known in self.hashes.items():
            found |= torch.tensor([h in known for h in _hashed(plain, salt)], dtype=torch.bool)
        return found

    def read_log(self) -> list[Pair]:
        """Take up what the log says, and return it."""
        if self.log is None or not self.log.is_file():
            return []
        salt, pairs = None, []
        for number, line in enumerate(self.log.read_text().splitlines()):
            header, entry = HEADER.fullmatch(line), LINE.fullmatch(line)
            if header:
                salt = bytes.fromhex(header[1])
            elif entry and (entry[1] or salt is not None):
                pairs.append((bytes.fromhex(entry[1]) if entry[1] else salt or b"", bytes.fromhex(entry[2])))
            elif number == 0 and not "salt ".startswith(line[:5]):
                raise InputError(f"{str(self.log)!r}, which is no log of deletions", "a file of ours", "choose another")
            # else a line that a kill has cut off: it was not yet promised to anybody
        self._take(pairs)
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """The salt, and the hashes under each."""
        hashes = {salt.hex(): _packed(known) for salt, known in sorted(self.hashes.items())}
        return {"salt": self.salt.hex(), "hashes": hashes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Add what :meth:`state_dict` returned, and the log. What is known already stays known, and the log learns what
        the state has more.
        """
        self.salt = bytes.fromhex(state["salt"])
        saved = state["hashes"]
        if isinstance(saved, Tensor):  # of an earlier version, which had one salt
            saved = {state["salt"]: saved}
        pairs = [(bytes.fromhex(salt), bytes(row)) for salt, rows in saved.items() for row in rows.tolist()]
        self._take(pairs)
        logged = set(self.read_log())
        self._write([(salt, h) for salt, known in self.hashes.items() for h in known if (salt, h) not in logged])

    def __contains__(self, pair: Pair) -> bool:
        """Whether this hash is kept under this salt."""
        return pair[1] in self.hashes.get(pair[0], ())

    def _take(self, pairs: list[Pair]) -> None:
        for salt, h in pairs:
            self.hashes.setdefault(salt, set()).add(h)

    def _write(self, pairs: list[Pair]) -> None:
        if self.log is None or not pairs:
            return
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "a+b") as file:
            text = "".join(f"{salt.hex()}:{h.hex()}\n" for salt, h in pairs)
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                text = f"salt {self.salt.hex()}\n{text}"
            else:
                file.seek(size - 1)
                # behind a line that a kill has cut off the next would be lost
                text = text if file.read(1) == b"\n" else f"\n{text}"
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())


def _packed(hashes: set[bytes]) -> Tensor:
    return torch.tensor(list(b"".join(sorted(hashes))), dtype=torch.uint8).view(-1, BYTES)


def _hashed(ids: list[int | str], salt: bytes) -> list[bytes]:
    texts = [f"{type(value).__name__}:{value}".encode() for value in ids]
    return [hashlib.blake2b(text, digest_size=BYTES, key=salt).digest() for text in texts]
