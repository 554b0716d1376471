"""From a plan of tasks to a stream; what all scenarios have in common."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.seeding import derive_seed
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import hold_out
from lightning_cl.streams.stream import Stream
from lightning_cl.streams.task import Task


@dataclass(frozen=True)
class Plan:
    """What one task takes from a data set.

    Args:
        classes: Names of the task's classes.
        label_map: Stream class index of each of the data set's classes (C,), -1 for classes that are not in the task.
        name: Name of the task, by default ``"task <id>"``.
        transform: The task's transform of its inputs.
        train: Which training samples may be taken (N,), by default all.
        test: Which test samples may be taken, by default all.
        in_order: The training samples are those of ``train``, and are served in that order.
    """

    classes: Sequence[str]
    label_map: Tensor
    name: str | None = None
    transform: TaskTransform | None = None
    train: Tensor | None = None
    test: Tensor | None = None
    in_order: bool = False


@dataclass(frozen=True)
class Serving:
    """How the tasks of a stream serve their data, whatever the scenario.

    Args:
        name: Name of the stream.
        validation_fraction: Part of each task's training data held out, stratified, in [0, 1).
        seed: Seed of order, augmentation, validation split (and of the samples' shares in data_incremental).
        augment: Random transform of training inputs; see `TensorData`.
        normalize: (mean, standard deviation), each one number per channel.
        pad: Zeros added on each side of the images.
    """

    name: str = "stream"
    validation_fraction: float = 0.0
    seed: int = 0
    augment: Callable[..., Any] | None = None
    normalize: tuple[Any, Any] | None = None
    pad: int | None = None


def assemble(
    source: Classification,
    scenario: str,
    plans: Sequence[Plan],
    class_names: Sequence[str],
    serving: Serving,
    *,
    with_task_ids: bool = False,
    has_boundaries: bool = True,
) -> Stream:
    """The stream of the planned tasks.

    Args:
        source: Where the samples come from.
        scenario: Name of the scenario.
        plans: One plan per task.
        class_names: The stream's class names in order of first appearance.
        serving: What all tasks share.
        with_task_ids: Whether batches are ``(x, y, task)``.
        has_boundaries: See `Stream`.
    """
    train, test = (part.padded(serving.pad) if serving.pad else part for part in (source.train, source.test))
    tasks, places = [], {name: place for place, name in enumerate(class_names)}
    for number, plan in enumerate(plans):
        if plan.in_order and plan.train is not None:
            rows, labels = plan.train, plan.label_map[train.targets[plan.train]]
        else:
            rows, labels = _select(train.targets, plan.label_map, plan.train)
        rows_test, labels_test = _select(test.targets, plan.label_map, plan.test)
        kept, held = hold_out(labels, serving.validation_fraction, serving.seed, "validation", number)
        common: dict[str, Any] = {
            "task_transform": plan.transform,
            "task_id": number if with_task_ids else None,
            "normalize": serving.normalize,
            "seed": derive_seed(serving.seed, "task", number),
        }
        tasks.append(
            Task(
                id=number,
                name=plan.name or f"task {number}",
                classes=tuple(plan.classes),
                class_indices=tuple(places[name] for name in plan.classes),
                train=train.view(rows[kept], labels[kept], augment=serving.augment, **common),
                validation=train.view(rows[held], labels[held], augment=None, **common) if len(held) else None,
                test=test.view(rows_test, labels_test, augment=None, **common),
                seed=serving.seed,
                in_order=plan.in_order,
            )
        )
    return Stream(serving.name, scenario, tasks, class_names, has_boundaries=has_boundaries, tokenizer=source.tokenizer)


def _select(targets: Tensor, label_map: Tensor, allowed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Rows of a task's samples and their stream labels."""
    labels = label_map[targets]
    if allowed is not None:
        outside = torch.ones(len(targets), dtype=torch.bool)
        outside[allowed] = False
        labels = labels.masked_fill(outside, -1)
    rows = (labels >= 0).nonzero().squeeze(1)
    return rows, labels[rows]
