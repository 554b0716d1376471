"""Rows in a memory-mapped file."""

import os
from pathlib import Path
from urllib.parse import quote

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import pad_to
from lightning_cl.memory._rows import TensorRows

#: Rows copied at once when all of them get another shape.
CHUNK = 256


class DiskRows(TensorRows):
    """The rows of one file, raw, in the page cache and not in the process's own memory.

    Args:
        path: The leaf's path, for messages and for the value of padding.
        like: A tensor (N, ...) of the rows' shape and dtype.
        folder: Where the file is.
        name: What the file's name begins with.
        existing: Whether rows that are there already are to be used; else they are removed.

    Raises:
        InputError: If ``existing`` and there is no such file.
    """

    def __init__(self, path: str, like: Tensor, folder: Path, name: str, *, existing: bool = False) -> None:
        self.path, self.folder, self.name = path, folder, quote(name, safe="")
        self.data = torch.empty((0, *like.shape[1:]), dtype=like.dtype)
        found = list(folder.glob(f"{self.name}-*.bin"))
        if not existing:
            for file in found:
                file.unlink()
            return
        mine = self._file(like.shape[1:])
        if not found:
            raise InputError(
                f"no file {self.name}-*.bin in {str(folder)!r}",
                "the files of the memory whose state is loaded",
                "give the path= with which the memory was made, or start anew",
            )
        if mine not in found:
            self._map(found[0], shape_in(found[0]))
            self._reshape(like.shape[1:])
        for file in found:
            if file != mine:
                file.unlink(missing_ok=True)
        self._map(mine, like.shape[1:])

    def flush(self) -> None:
        """Wait until the disk has everything."""
        if len(self.data):
            descriptor = os.open(self._file(self.data.shape[1:]), os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _file(self, shape: torch.Size) -> Path:
        return self.folder / f"{self.name}-{'x'.join(map(str, shape))}.bin"

    def _map(self, file: Path, shape: torch.Size) -> None:
        row = self.data.element_size() * shape.numel()
        n = file.stat().st_size // max(1, row)
        if n * row == 0:
            self.data = self.data.new_empty((n, *shape))
            return
        raw = torch.from_file(str(file), shared=True, size=n * row, dtype=torch.uint8)
        self.data = raw.view(self.data.dtype).view(n, *shape)

    def _grow(self, n: int) -> None:
        self._write(self._file(self.data.shape[1:]), n, self.data.shape[1:])

    def _write(self, file: Path, n: int, shape: torch.Size) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(file, "ab") as stream:
            stream.truncate(n * self.data.element_size() * shape.numel())
        self._map(file, shape)

    def _reshape(self, shape: torch.Size) -> None:
        before, old = self.data, self._file(self.data.shape[1:])
        if len(before) == 0:
            self.data = before.new_empty((0, *shape))
            return
        new, temporary = self._file(shape), self._file(shape).with_suffix(".tmp")
        temporary.unlink(missing_ok=True)
        self._write(temporary, len(before), shape)
        for start in range(0, len(before), CHUNK):
            # a state from before the rows became longer has nothing but padding behind its own length
            part = before[start : start + CHUNK][(slice(None), *(slice(size) for size in shape))]
            self.data[start : start + CHUNK] = pad_to(self.path, part, shape)
        os.replace(temporary, new)
        self._map(new, shape)
        if old != new:
            old.unlink(missing_ok=True)


def shape_in(file: Path) -> torch.Size:
    """Shape of the rows of a file."""
    text = file.stem.rpartition("-")[2]
    return torch.Size(int(part) for part in text.split("x") if part)
