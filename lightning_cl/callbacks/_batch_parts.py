"""Inputs, labels and task ids, the batches that a generator can make."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_cl.callbacks._foreign import inputs_of
from lightning_cl.callbacks._input_errors import input_errors
from lightning_cl.errors import InputError
from lightning_cl.finetuning.batch_parts import TASK_NAMES
from lightning_cl.functional.batches import leaves
from lightning_cl.memory import find_labels


@dataclass
class GeneratedParts:
    """Inputs, labels and task ids of a batch, and where they are in it."""

    x: Tensor
    y: Tensor
    task: Tensor | None
    x_path: str
    y_path: str
    task_path: str = ""


def parts_of(batch: Any) -> GeneratedParts:
    """The parts of a tuple or of a mapping with obvious names.

    Raises:
        InputError: If there is anything else in it, or the inputs are not floating.
    """
    with input_errors():
        found = leaves(batch)
        x, y = inputs_of(batch), find_labels(batch)
    paths = {id(leaf): path for path, leaf in found.items()}
    rest = {path: leaf for path, leaf in found.items() if leaf is not x and leaf is not y}
    tasks = [p for p in rest if p.rpartition("/")[2] in TASK_NAMES or (p == "2" and isinstance(batch, tuple | list))]
    if x is None or y is None or x is y or len(rest) != len(tasks) or len(tasks) > 1:
        raise InputError(
            f"a batch with leaves {sorted(found)}",
            "inputs, integer labels and, third or named task, task ids: a generator makes nothing else",
            "leave the others out of training batches: (x, y), or {'x': x, 'y': y}",
        )
    if not x.is_floating_point() or x.dim() < 2:
        raise InputError(
            f"inputs of {x.dtype} and shape {tuple(x.shape)}",
            "floating inputs (N, ...)",
            "a VAE generates no token ids or bytes: convert inputs in the data, or take another method",
        )
    task = rest[tasks[0]] if tasks else None
    return GeneratedParts(x, y, task, paths[id(x)], paths[id(y)], tasks[0] if tasks else "")  # type: ignore[arg-type]
