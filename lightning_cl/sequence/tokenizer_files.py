"""The tokenizer in the run folder."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lightning_cl.files import atomic_write

FOLDER = "tokenizer"


def save_tokenizer(run_dir: Path | None, stream: Any) -> None:
    """Put a stream's tokenizer beside the models, which predict nothing of texts without it."""
    tokenizer = getattr(stream, "tokenizer", None)
    if run_dir is None or tokenizer is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                atomic_write(run_dir / FOLDER / file.relative_to(folder), partial(_write, file.read_bytes()))


def _write(content: bytes, out: BinaryIO) -> None:
    out.write(content)
