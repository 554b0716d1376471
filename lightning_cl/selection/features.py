"""Features of a backbone, kept on disk."""

import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.files import load_state, save_state
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.selection.samples import digest_of
from lightning_cl.streams.data import Data
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.selected_data import SelectedData

log = logging.getLogger(__name__)
_PER_FILE = 512


class Features(NamedTuple):
    """Features (N, D) float32, and the median over batches of the seconds that the backbone took for one sample."""

    features: Tensor
    seconds: float


def extract_features(
    backbone: nn.Module,
    data: Data,
    folder: Path | None = None,
    *,
    key: str = "",
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of all samples in their order, in eval mode, without augmentation.

    At length 1 where the backbone says ``unit_length`` (a sentence-transformers folder that normalises).

    With a folder they are kept there, in files of about 512 samples that are whole or not there, under a name that
    depends on ``key``, the weights, the labels, the inputs of 64 samples, and ``batch_size``: an extraction that was
    stopped goes on, one that is done is read.

    Args:
        backbone: Gives features (N, D) of a batch's inputs; its mode is put back.
        data: The samples.
        folder: Of the cache.
        key: What makes the backbone another one, beside class, ``spec`` and weights.
        batch_size: Samples at a time.
        num_workers: Processes that prepare batches.
        device: Where the backbone is, and works.

    Raises:
        InputError: For features that are not (N, D), or not finite.
    """
    own = None if folder is None else folder / _fingerprint(backbone, data, batch_size, key)
    if own is not None and (done := _load(own / "features.pt")) is not None:
        return Features(done["features"], done["seconds"])
    per_file = batch_size * -(-_PER_FILE // batch_size)
    starts = range(0, len(data), per_file)
    parts: dict[int, dict[str, Any]] = {}
    for start in starts:
        if own is not None and (known := _load(own / _part_name(start))) is not None:
            parts[start] = known
    missing = [start for start in starts if start not in parts]
    if missing:
        indices = torch.cat([torch.arange(s, min(s + per_file, len(data))) for s in missing])
        loader = TaskLoader(SelectedData(data, indices), batch_size, num_workers=num_workers)
        batches = _batches(backbone, loader, device)
        for start in missing:
            count = -(-(min(start + per_file, len(data)) - start) // batch_size)
            found = [next(batches) for _ in range(count)]
            parts[start] = {
                "version": 1,
                "features": torch.cat([f for f, _ in found]),
                "seconds": [s for _, s in found],
            }
            if own is not None:
                save_state(own / _part_name(start), parts[start])
    features = torch.cat([parts[start]["features"] for start in starts])
    seconds = float(torch.tensor([s for start in starts for s in parts[start]["seconds"]]).median())
    if own is not None:
        save_state(own / "features.pt", {"version": 1, "features": features, "seconds": seconds})
        for file in own.glob("part-*.pt"):
            file.unlink()
    return Features(features, seconds)


def _batches(backbone: nn.Module, loader: TaskLoader, device: torch.device | str) -> Iterator[tuple[Tensor, float]]:
    """Features of each batch and seconds per sample."""
    from lightning.fabric.utilities import move_data_to_device

    with _compat.evaluating(backbone), torch.no_grad():
        for batch in loader:
            inputs = move_data_to_device(split_batch(batch).inputs, torch.device(device))
            start = time.perf_counter()
            output = backbone(inputs)
            if isinstance(output, Tensor) and output.is_cuda:
                torch.cuda.synchronize(output.device)
            seconds = time.perf_counter() - start
            if not isinstance(output, Tensor) or output.dim() != 2:
                found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
                raise InputError(f"features {found!r}", "(N, d)", "give a backbone that pools its features")
            if not output.isfinite().all():
                raise InputError("features that are not finite", "finite ones", "check the weights and the inputs")
            if getattr(backbone, "unit_length", False):
                output = torch.nn.functional.normalize(output)
            yield output.float().cpu().clone(), seconds / len(output)


def _part_name(start: int) -> str:
    return f"part-{start:08d}.pt"


def _fingerprint(backbone: nn.Module, data: Data, batch_size: int, key: str) -> str:
    digest = hashlib.blake2b(digest_size=12)
    digest.update(repr((key, type(backbone).__qualname__, batch_size, torch.__version__, digest_of(data))).encode())
    digest.update(repr((getattr(backbone, "spec", None), getattr(backbone, "unit_length", False))).encode())
    for name, value in backbone.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode())
            digest.update(value.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _load(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        return load_state(file)
    except Exception:  # of another version, or damaged: extracted anew
        log.warning("%s cannot be read; its features are extracted anew", file)
        return None
