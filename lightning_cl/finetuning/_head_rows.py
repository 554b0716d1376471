"""Rows of classifiers: whose they are, and copying them from one layer to another."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.mlp_head import MLPHead

KeepRows = Literal["matching", "first", "none"]


def given_names(classes: int | Sequence[str], argument: str = "classes") -> list[str]:
    """Class names of a number or a list; a number names them "0", "1", ...

    Raises:
        InputError: For fewer than one class, or a name twice.
    """
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else [str(name) for name in classes]
    if isinstance(classes, bool | str) or not names or len(set(names)) < len(names):
        raise InputError(f"{argument}={classes!r}", "a number >= 1, or names, each once", "pass ['cat', 'dog'] or 2")
    return names


def names_of(model: Any, head: Any) -> list[str]:
    """Class names of a classifier's rows, as far as it or its HF config knows them; else none."""
    own = getattr(head, "class_names", None)
    return list(own) if own else names_of_config(getattr(model, "config", None))


def names_of_config(config: Any) -> list[str]:
    """Class names in an HF config (an object or plain values), where they are more than ``LABEL_0``, ``LABEL_1``."""
    labels = config.get("id2label") if isinstance(config, Mapping) else getattr(config, "id2label", None)
    if not isinstance(labels, Mapping) or not labels:
        return []
    names = [str(labels[key]) for key in sorted(labels, key=int)]
    return [] if all(name.startswith("LABEL_") for name in names) or len(set(names)) < len(names) else names


def row_pairs(new: Sequence[str], old: Sequence[str], rows: tuple[int, int], keep: str) -> list[tuple[int, int]]:
    """(new row, old row) of the rows to keep.

    Args:
        new, old: Class names on both sides; empty where they are not known.
        rows: Number of rows on both sides.
        keep: ``"matching"`` (by name, none where a side has no names), ``"first"`` (by number) or ``"none"``.

    Raises:
        InputError: For another word.

    Example:
        >>> row_pairs(["a", "b", "c"], ["c", "a"], (3, 2), "matching")
        [(0, 1), (2, 0)]
    """
    if keep not in ("matching", "first", "none"):
        raise InputError(f"keep_rows={keep!r}", "'matching', 'first' or 'none'", "leave it out for 'matching'")
    if keep == "first":
        return [(i, i) for i in range(min(rows))]
    place = {name: i for i, name in enumerate(old)} if keep == "matching" else {}
    return [(i, place[name]) for i, name in enumerate(new) if name in place]


def row_keys(head: nn.Module) -> list[str]:
    """Names of a classifier's tensors that have one row per class."""
    inside = "rows." if isinstance(head, MLPHead) else ""
    return [name for name in (f"{inside}weight", f"{inside}bias") if name in head.state_dict()]


@torch.no_grad()
def copy_rows(head: nn.Module, saved: Mapping[str, Tensor], pairs: Sequence[tuple[int, int]]) -> int:
    """Copy rows, and what all classes share, from a classifier's saved tensors into another one.

    Args:
        head: The classifier to fill.
        saved: Tensors of the old one, by its own names.
        pairs: (new row, old row).

    Returns:
        How many rows there are now from ``saved``: 0 where the widths differ.
    """
    own, rows = head.state_dict(), row_keys(head)
    weight = rows[0]
    old = saved.get(weight)
    shared = [key for key in own if key not in rows]
    differ = [key for key in shared if key in saved and saved[key].shape != own[key].shape]
    if not pairs or differ or old is None or old[0].numel() != own[weight][0].numel():
        return 0
    for key in shared:
        if key in saved:
            own[key].copy_(saved[key])
    to, of = ([pair[side] for pair in pairs] for side in (0, 1))
    for key in rows:
        if key in saved:
            own[key][to] = saved[key][of].to(own[key]).reshape(own[key][to].shape)
    return len(pairs)
