"""One builder per scenario, from any classification data set to a stream.

Scenarios after van de Ven & Tolias, "Three scenarios for continual learning" (arXiv:1904.07734), with data_incremental
(same classes, new samples), online (one pass), and those of `blurred`, whose tasks overlap. Every builder takes the
keyword arguments of ``assembly.Serving``.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from lightning_cl.errors import InputError
from lightning_cl.streams.assembly import Plan, Serving, assemble
from lightning_cl.streams.blurred import blurry, gradual
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.grouping import (
    class_groups,
    domain_plans,
    label_map,
    needed,
    one_per_task,
    refuse,
    split_plans,
)
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import stratified_shares, task_sizes
from lightning_cl.streams.stream import Stream


def class_incremental(
    source: Classification,
    n_tasks: int | None = None,
    *,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    transform: Iterable[TaskTransform] | None = None,
    **serving: Any,
) -> Stream:
    """New classes in every task; one label space, which grows.

    Args:
        source: The data set.
        n_tasks: Number of tasks; None if ``classes_per_task`` says it.
        classes_per_task: Classes in each task (or a list of numbers), instead of an equal split.
        class_order_seed: Order of the classes; None is their natural order.
        base_fraction: Part of the classes that the first task has; the others share the rest equally.
        transform: Transforms of the inputs, one per task.
        **serving: See ``assembly.Serving``.

    Raises:
        InputError: For fewer classes than tasks, ``n_tasks < 1``, and fractions out of range.
    """
    groups = class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    plans, names = split_plans(source, groups, transform)
    return assemble(source, "class_incremental", plans, names, Serving(**serving))


def task_incremental(
    source: Classification,
    n_tasks: int | None = None,
    *,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    transform: Iterable[TaskTransform] | None = None,
    **serving: Any,
) -> Stream:
    """Task ids are given, in training and evaluation: batches are ``(x, y, task)``.

    Without transforms the classes are split as in `class_incremental`. With transforms every task has all classes under
    names of its own (``"task 3: 7"``), so that one growing head masked by task is a head per task. Arguments as in
    `class_incremental`.
    """
    if transform is None:
        groups = class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
        plans, names = split_plans(source, groups, None)
    else:
        refuse("task_incremental with transforms", base_fraction=base_fraction, classes_per_task=classes_per_task)
        n = len(source.class_names)
        plans, names = [], []
        for number, one in enumerate(one_per_task(transform, n_tasks)):
            own = [f"task {number}: {name}" for name in source.class_names]
            plans.append(Plan(own, torch.arange(n) + len(names), getattr(one, "name", None), one))
            names += own
    return assemble(source, "task_incremental", plans, names, Serving(**serving), with_task_ids=True)


def domain_incremental(
    source: Classification,
    n_tasks: int | None = None,
    *,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    transform: Iterable[TaskTransform] | None = None,
    **serving: Any,
) -> Stream:
    """The same labels in every task, other inputs; no task ids.

    With transforms every task has all samples and classes under its own transform (permuted, rotated, corrupted).
    Of a data set whose samples have domains, every task has the samples of one, and all classes. Otherwise the classes
    are split and relabelled by their position in the task (``"class 0"``, ``"class 1"``, ...), as in the domain version
    of Split MNIST. Arguments as in `class_incremental`.
    """
    if transform is None and source.domains is not None:
        refuse("domain_incremental with domains", base_fraction=base_fraction, classes_per_task=classes_per_task)
        plans = domain_plans(source, n_tasks)
        return assemble(source, "domain_incremental", plans, source.class_names, Serving(**serving))
    if transform is not None:
        refuse("domain_incremental with transforms", base_fraction=base_fraction, classes_per_task=classes_per_task)
        every = torch.arange(len(source.class_names))
        plans = [
            Plan(source.class_names, every, getattr(one, "name", None), one) for one in one_per_task(transform, n_tasks)
        ]
        return assemble(source, "domain_incremental", plans, source.class_names, Serving(**serving))
    groups = class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    names = [f"class {place}" for place in range(max(map(len, groups)))]
    plans = [Plan(names[: len(group)], label_map(source, group, 0)) for group in groups]
    return assemble(source, "domain_incremental", plans, names, Serving(**serving))


def data_incremental(
    source: Classification,
    n_tasks: int | None = None,
    *,
    base_fraction: float | None = None,
    transform: Iterable[TaskTransform] | None = None,
    **serving: Any,
) -> Stream:
    """The same classes in every task, new samples: training and test samples are shared out, stratified, by seed.

    Args:
        source: The data set.
        n_tasks: Number of tasks.
        base_fraction: Part of the samples that the first task has; the others share the rest equally.
        transform: Transforms of the inputs, one per task (a drift).
        **serving: See ``assembly.Serving``.

    Raises:
        InputError: For fewer samples than tasks, ``n_tasks < 1``, and fractions out of range.
    """
    transforms: list[TaskTransform | None] = (
        [None] * needed(n_tasks) if transform is None else [*one_per_task(transform, n_tasks)]
    )
    options = Serving(**serving)
    shares = [
        stratified_shares(
            part.targets,
            task_sizes(len(part), len(transforms), base_fraction, f"{what} samples"),
            options.seed,
            "shares",
            what,
        )
        for what, part in (("training", source.train), ("test", source.test))
    ]
    every = torch.arange(len(source.class_names))
    plans = [
        Plan(source.class_names, every, getattr(one, "name", None), one, train, test)
        for one, train, test in zip(transforms, *shares, strict=True)
    ]
    return assemble(source, "data_incremental", plans, source.class_names, options)


def online(
    source: Classification, n_tasks: int | None = None, *, over: str = "class_incremental", **arguments: Any
) -> Stream:
    """Any scenario, to be learnt in one pass over each task's data.

    Args:
        source: The data set.
        n_tasks: Number of tasks.
        over: Name of the scenario that makes the tasks.
        **arguments: Those of that scenario's builder.
    """
    stream = builder_of(over, "online_over", [name for name in BUILDERS if name != "online"])(
        source, n_tasks, **arguments
    )
    return Stream(
        stream.name,
        "online",
        stream.tasks,
        stream.class_names,
        has_boundaries=stream.has_boundaries,
        tokenizer=stream.tokenizer,
    )


BUILDERS = {
    builder.__name__: builder
    for builder in (
        *(class_incremental, task_incremental, domain_incremental, data_incremental, online, blurry, gradual),
    )
}


def builder_of(name: str, key: str, known: list[str]) -> Any:
    """The builder called ``name``, which the config gives as ``stream.<key>``."""
    if name not in known:
        raise InputError(f"{key}={name!r}", f"one of {', '.join(known)}", f"set stream.{key}={known[0]}")
    return BUILDERS[name]
