"""What may be added to a memory."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf

#: How a caller who misses something gets it.
HINTS = {
    "labels": "give label_fn=lambda batch: batch['my_label']",
    "tasks": "give tasks=number",
    "features": "give features_fn=lambda module, batch: features",
    "losses": "give losses_fn=lambda module, batch: losses",
}


def check_structure(
    found: Mapping[str, Leaf], paths: list[str] | None, extras: Mapping[str, Any], known: list[str] | None
) -> None:
    """The same leaves, and the same extras, every time; ``known`` is None as long as nothing is stored."""
    if known is not None and sorted(extras) != sorted(known):
        raise InputError(
            f"extras {sorted(extras)} for a memory with {sorted(known)}",
            "the same extras with every batch",
            "give each method a memory of its own",
        )
    if paths is not None and sorted(found) != sorted(paths):
        raise InputError(
            f"a batch with leaves {sorted(found)} for a memory of {sorted(paths)}",
            "the same kind of batch in every task",
            "give each kind of batch its own Replay(name=...)",
        )


def check_known(n: int, needs: frozenset[str], policy: str, known: Mapping[str, Tensor | None]) -> None:
    """What the policy needs is there, one entry per sample."""
    for name, value in known.items():
        if value is None and name not in needs:
            continue
        good = value is not None and value.shape[:1] == (n,) and (name == "features" or value.dim() == 1)
        if not good:
            single = name.removesuffix("s") if name != "losses" else "loss"
            raise InputError(
                f"{name} {'missing' if value is None else f'of shape {tuple(value.shape)}'} for {n} samples",
                f"one {single} per sample, shape ({n}{', D' if name == 'features' else ''},), for policy {policy!r}",
                HINTS[name],
            )


def check_ids(n: int, ids: Leaf | None, expected: bool | None) -> None:
    """One id per sample; with all batches or with none (``expected`` is None as long as nothing is stored)."""
    if ids is not None and len(ids) != n:
        raise InputError(f"{len(ids)} ids for {n} samples", "one id per sample", "check id_fn")
    if expected is not None and expected != (ids is not None):
        raise InputError(
            f"a batch {'without' if ids is None else 'with'} ids for a memory of samples that "
            f"{'have them' if expected else 'have none'}",
            "ids with every batch or with none",
            "give id_fn=lambda batch: batch['my_id']",
        )
