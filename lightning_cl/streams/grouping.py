"""Which classes, labels and transforms go to which task."""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.assembly import Plan
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import class_order, task_sizes


def needed(n_tasks: int | None) -> int:
    """``n_tasks``, which nothing else says here."""
    if n_tasks is None or n_tasks < 1:
        raise InputError(f"n_tasks={n_tasks!r}", "an integer >= 1", "set stream.n_tasks=5")
    return n_tasks


def refuse(where: str, **arguments: Any) -> None:
    """Raise if an argument that would be without effect is given."""
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name}={value!r} in {where}", f"no {name} there", f"set stream.{name}=null")


def class_groups(
    source: Classification,
    n_tasks: int | None,
    classes_per_task: int | Sequence[int] | None,
    class_order_seed: int | None,
    base_fraction: float | None,
) -> list[list[int]]:
    """The classes of each task, as positions in the data set's class names."""
    n = len(source.class_names)
    if classes_per_task is None:
        sizes = task_sizes(n, needed(n_tasks), base_fraction, "classes")
    else:
        refuse("a stream with classes_per_task", base_fraction=base_fraction)
        if isinstance(classes_per_task, int):
            sizes = [classes_per_task] * (n // max(1, classes_per_task) if n_tasks is None else n_tasks)
        else:
            sizes = list(classes_per_task)
        if not sizes or min(sizes) < 1 or sum(sizes) > n or (n_tasks is not None and len(sizes) != n_tasks):
            raise InputError(
                f"classes_per_task={classes_per_task!r} with n_tasks={n_tasks!r} and {n} classes",
                f"at least one class in each task and at most {n} in all",
                "set fewer tasks or smaller classes_per_task",
            )
    order = iter(class_order(n, class_order_seed))
    return [list(islice(order, size)) for size in sizes]


def split_plans(
    source: Classification, groups: list[list[int]], transform: Iterable[TaskTransform] | None
) -> tuple[list[Plan], list[str]]:
    """Plans in which each group of classes is a task with labels of its own, and all class names in order."""
    transforms = [None] * len(groups) if transform is None else one_per_task(transform, len(groups))
    plans: list[Plan] = []
    names: list[str] = []
    for group, one in zip(groups, transforms, strict=True):
        own = [source.class_names[label] for label in group]
        plans.append(Plan(own, label_map(source, group, len(names)), None, one))
        names += own
    return plans, names


def domain_plans(source: Classification, n_tasks: int | None) -> list[Plan]:
    """Plans in which each of the data set's domains is a task with all classes."""
    domains = source.domains
    assert domains is not None
    if n_tasks not in (None, len(domains.names)):
        raise InputError(
            f"n_tasks={n_tasks!r} with {len(domains.names)} domains",
            "a task for each domain",
            "set stream.n_tasks=null",
        )
    every = torch.arange(len(source.class_names))
    return [
        Plan(
            source.class_names,
            every,
            name,
            train=(domains.train == place).nonzero().squeeze(1),
            test=(domains.test == place).nonzero().squeeze(1),
        )
        for place, name in enumerate(domains.names)
    ]


def label_map(source: Classification, group: list[int], first: int) -> Tensor:
    """Stream class index of each class: ``first``, ``first`` + 1, ... for the group in its order, -1 for the others."""
    labels = torch.full((len(source.class_names),), -1)
    labels[torch.tensor(group)] = torch.arange(first, first + len(group))
    return labels


def one_per_task(transform: Iterable[TaskTransform], n_tasks: int | None) -> list[TaskTransform]:
    """The transforms as a list of ``n_tasks`` (all of them if None)."""
    if n_tasks is not None:
        needed(n_tasks)
    transforms = list(islice(transform, n_tasks))
    if not transforms or (n_tasks is not None and len(transforms) < n_tasks):
        raise InputError(
            f"{len(transforms)} task transforms for n_tasks={n_tasks!r}", "one transform per task", "set n_tasks lower"
        )
    return transforms
