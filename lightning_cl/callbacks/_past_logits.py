"""Logits of a model on whole batches, read over the classes that count."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.callbacks._batch_parts import parts_of
from lightning_cl.errors import InputError
from lightning_cl.functional.masking import mask_logits


def logits_of(module: Any, batch: Any, logits_fn: Callable[..., Any] | None, n: int) -> Tensor:
    """Logits (n, C) by ``logits_fn``, else the module's ``all_logits(batch)``, else ``module(x)``, ``module(x, task)``.

    Raises:
        InputError: If they are no logits of n samples.
    """
    output = (logits_fn or _logits)(module, batch)
    logits = output[0] if isinstance(output, tuple) else output
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != n:
        shape = f"outputs of shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(
            f"{shape} of {type(module).__name__} for {n} generated inputs",
            f"logits of shape ({n}, classes)",
            "give logits_fn=lambda module, batch: ...",
        )
    return logits


def read_over(logits: Tensor, groups: Sequence[Sequence[int]], task: Tensor | None) -> Tensor:
    """Logits (N, C) without those of classes that do not count: outside of the groups, or of the sample's own.

    Args:
        logits: (N, C).
        groups: Columns that share a softmax: of each task, or one group of all; none for all columns.
        task: Task of each sample, (N,), which decides its group if there are several.
    """
    if not groups:
        return logits
    table = logits.new_zeros(len(groups), logits.shape[1], dtype=torch.bool)
    for row, group in zip(table, groups, strict=True):
        row[group] = True
    return mask_logits(logits, table.any(0) if task is None or len(table) == 1 else table[task])


def groups_of(module: Any) -> list[list[int]]:
    """The module's ``logit_groups``, if it has them."""
    return [list(group) for group in getattr(module, "logit_groups", [])]


def _logits(module: Any, batch: Any) -> Any:
    # predictions of ours mask by the classes known now
    if hasattr(module, "all_logits"):
        return module.all_logits(batch)
    parts = parts_of(batch)
    return module(parts.x) if parts.task is None else module(parts.x, parts.task)
