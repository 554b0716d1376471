"""Labels and names of samples, where people put them."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_cl.functional.batches import Leaf, leaves

LABEL_NAMES = ("y", "label", "labels", "target", "targets")
ID_NAMES = ("id", "sample_id", "index")


def find_labels(batch: Any, label_fn: Callable[[Any], Tensor] | None = None) -> Tensor | None:
    """One integer label per sample, (N,), or None where there is none to be found.

    ``label_fn(batch)`` if given; else the last integer leaf (N,) named y, label(s) or target(s); else the second
    element of a tuple or list, if it is an integer (N,).
    """
    if label_fn is not None:
        return label_fn(batch)
    found = _integers(leaves(batch))
    named = [leaf for path, leaf in found.items() if path.rpartition("/")[2] in LABEL_NAMES]
    return named[-1] if named else found.get("1")


def find_ids(found: Mapping[str, Leaf]) -> Leaf | None:
    """What names each sample among a batch's leaves: the first integer leaf (N,) named id, sample_id or index."""
    named = {path: leaf for path, leaf in found.items() if path.rpartition("/")[2] in ID_NAMES}
    return next(iter(_integers(named).values()), None)


def _integers(found: Mapping[str, Leaf]) -> dict[str, Tensor]:
    return {
        path: leaf
        for path, leaf in found.items()
        if isinstance(leaf, Tensor) and leaf.ndim == 1 and not leaf.is_floating_point() and not leaf.is_complex()
    }
