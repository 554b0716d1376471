"""One builder per scenario, from any classification data set to a stream.

Scenarios after van de Ven & Tolias, "Three scenarios for continual learning" (arXiv:1904.07734), with data_incremental
(same classes, new samples) and online (one pass). Every builder takes the keyword arguments of ``assembly.Serving``.
"""

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.assembly import Plan, Serving, assemble
from lightning_cl.streams.data import TaskTransform
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import class_order, stratified_shares, task_sizes
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
    groups = _class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    plans, names = _split_plans(source, groups, transform)
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
        groups = _class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
        plans, names = _split_plans(source, groups, None)
    else:
        _refuse("task_incremental with transforms", base_fraction=base_fraction, classes_per_task=classes_per_task)
        n = len(source.class_names)
        plans, names = [], []
        for number, one in enumerate(_one_per_task(transform, n_tasks)):
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
    Without, the classes are split and relabelled by their position in the task (``"class 0"``, ``"class 1"``, ...), as
    in the domain version of Split MNIST. Arguments as in `class_incremental`.
    """
    if transform is not None:
        _refuse("domain_incremental with transforms", base_fraction=base_fraction, classes_per_task=classes_per_task)
        every = torch.arange(len(source.class_names))
        plans = [
            Plan(source.class_names, every, getattr(one, "name", None), one)
            for one in _one_per_task(transform, n_tasks)
        ]
        return assemble(source, "domain_incremental", plans, source.class_names, Serving(**serving))
    groups = _class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    names = [f"class {place}" for place in range(max(map(len, groups)))]
    plans = [Plan(names[: len(group)], _label_map(source, group, 0)) for group in groups]
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
    transforms = None if transform is None else _one_per_task(transform, n_tasks)
    n_tasks = _needed(n_tasks) if transforms is None else len(transforms)
    options = Serving(**serving)
    shares = [
        stratified_shares(
            part.targets,
            task_sizes(len(part), n_tasks, base_fraction, f"{what} samples"),
            options.seed,
            "shares",
            what,
        )
        for what, part in (("training", source.train), ("test", source.test))
    ]
    every = torch.arange(len(source.class_names))
    plans = [
        Plan(source.class_names, every, None, transforms[number] if transforms else None, train, test)
        for number, (train, test) in enumerate(zip(*shares, strict=True))
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
    stream = _builder(over, "online_over", [name for name in BUILDERS if name != "online"])(
        source, n_tasks, **arguments
    )
    return Stream(stream.name, "online", stream.tasks, stream.class_names)


BUILDERS = {
    builder.__name__: builder
    for builder in (class_incremental, task_incremental, domain_incremental, data_incremental, online)
}


def build_stream(
    dataset: Classification,
    scenario: str = "class_incremental",
    name: str = "stream",
    n_tasks: int | None = None,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    validation_fraction: float = 0.0,
    seed: int = 0,
    transform: Iterable[TaskTransform] | None = None,
    augment: Any = None,
    normalize: tuple[Any, Any] | None = None,
    pad: int | None = None,
    online_over: str = "class_incremental",
) -> Stream:
    """The stream of a config: dispatches to the scenario's builder.

    Args:
        dataset: The data set, from ``lightning_cl.streams.datasets`` or a `Classification` of your own.
        scenario: Name of a builder in this module.
        name: Name of the stream.
        n_tasks: Number of tasks.
        classes_per_task: See `class_incremental`.
        class_order_seed: See `class_incremental`.
        base_fraction: Part of the classes (or samples, in data_incremental) in the first task.
        validation_fraction: Part of each task's training data that is held out for validation.
        seed: Seed of order, augmentation, validation split and sample shares.
        transform: Task transforms, a list or generator with one per task.
        augment: Random transform of training inputs.
        normalize: (mean, standard deviation), each one number per channel.
        pad: Zeros added on each side of the images.
        online_over: For ``scenario="online"``: the scenario that makes the tasks.

    Raises:
        InputError: For an unknown scenario, and as the scenario's builder does.
    """
    builder = _builder(scenario, "scenario", list(BUILDERS))
    arguments: dict[str, Any] = {
        "classes_per_task": classes_per_task,
        "class_order_seed": class_order_seed,
        "over": online_over,
    }
    made_by = online_over if scenario == "online" else scenario
    if scenario != "online":
        del arguments["over"]
    if made_by == "data_incremental":
        _refuse("data_incremental", classes_per_task=classes_per_task)
        del arguments["classes_per_task"], arguments["class_order_seed"]
    return builder(
        dataset,
        n_tasks,
        base_fraction=base_fraction,
        transform=transform,
        name=name,
        validation_fraction=validation_fraction,
        seed=seed,
        augment=augment,
        normalize=normalize,
        pad=pad,
        **arguments,
    )


def _builder(name: str, key: str, known: list[str]) -> Any:
    if name not in known:
        raise InputError(f"{key}={name!r}", f"one of {', '.join(known)}", f"set stream.{key}={known[0]}")
    return BUILDERS[name]


def _needed(n_tasks: int | None) -> int:
    if n_tasks is None:
        raise InputError("n_tasks=None", "an integer >= 1", "set stream.n_tasks=5")
    return n_tasks


def _refuse(where: str, **arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise InputError(f"{name}={value!r} in {where}", f"no {name} there", f"set stream.{name}=null")


def _class_groups(
    source: Classification,
    n_tasks: int | None,
    classes_per_task: int | Sequence[int] | None,
    class_order_seed: int | None,
    base_fraction: float | None,
) -> list[list[int]]:
    """The classes of each task, as positions in the data set's class names."""
    n = len(source.class_names)
    if classes_per_task is None:
        sizes = task_sizes(n, _needed(n_tasks), base_fraction, "classes")
    else:
        _refuse("a stream with classes_per_task", base_fraction=base_fraction)
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


def _split_plans(
    source: Classification, groups: list[list[int]], transform: Iterable[TaskTransform] | None
) -> tuple[list[Plan], list[str]]:
    transforms = [None] * len(groups) if transform is None else _one_per_task(transform, len(groups))
    plans: list[Plan] = []
    names: list[str] = []
    for group, one in zip(groups, transforms, strict=True):
        own = [source.class_names[label] for label in group]
        plans.append(Plan(own, _label_map(source, group, len(names)), None, one))
        names += own
    return plans, names


def _label_map(source: Classification, group: list[int], first: int) -> Tensor:
    """Stream class index of each class: ``first``, ``first`` + 1, ... for the group in its order, -1 for the others."""
    labels = torch.full((len(source.class_names),), -1)
    labels[torch.tensor(group)] = torch.arange(first, first + len(group))
    return labels


def _one_per_task(transform: Iterable[TaskTransform], n_tasks: int | None) -> list[TaskTransform]:
    """The transforms as a list of ``n_tasks`` (all of them if None)."""
    if n_tasks is not None and n_tasks < 1:
        raise InputError(f"n_tasks={n_tasks!r}", "an integer >= 1", "set stream.n_tasks=5")
    transforms = list(islice(transform, n_tasks))
    if not transforms or (n_tasks is not None and len(transforms) < n_tasks):
        raise InputError(
            f"{len(transforms)} task transforms for n_tasks={n_tasks!r}", "one transform per task", "set n_tasks lower"
        )
    return transforms
