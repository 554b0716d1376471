"""Builders of streams whose tasks overlap: classes come and go, and nobody says when."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.assembly import Plan, Serving, assemble
from lightning_cl.streams.grouping import class_groups, label_map
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import stratified_shares
from lightning_cl.streams.stream import Stream


def blurry(
    source: Classification,
    n_tasks: int | None = None,
    *,
    blur: float = 0.1,
    boundaries: bool = False,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    **serving: Any,
) -> Stream:
    """Class-incremental, but a share of each task's samples is spread equally over the other tasks.

    Blurry-M of Bang et al. 2021 (arXiv:2103.17230) is ``blur=M/100``. Any class may come at any time, so every task
    names all classes. A task is tested on its own classes, those that most of its samples are of.

    Args:
        source: The data set.
        n_tasks: Number of tasks.
        blur: Share of each class's training samples that is in other tasks, in [0, 1).
        boundaries: Whether methods may know where a task ends. If not, those that need it are refused, and the
            optimizer goes on from task to task.
        classes_per_task, class_order_seed, base_fraction: See `class_incremental`.
        **serving: See ``assembly.Serving``.

    Raises:
        InputError: For a blur out of range or with one task, and as `class_incremental` does.
    """
    groups = class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    if not isinstance(blur, int | float) or not 0 <= blur < 1:
        raise InputError(f"blur={blur!r}", "a fraction inside [0, 1)", "set stream.blur=0.1")
    if blur and len(groups) == 1:
        raise InputError(f"blur={blur!r} with one task", "n_tasks >= 2", "set stream.n_tasks=5")
    options = Serving(**serving)
    targets = source.train.targets
    parts: list[list[Tensor]] = [[] for _ in groups]
    for number, group in enumerate(groups):
        rows = torch.isin(targets, torch.tensor(group)).nonzero().squeeze(1)
        away, others = round(blur * len(rows)), len(groups) - 1
        sizes = [away // others + (place < away % others) for place in range(others)]
        sizes.insert(number, len(rows) - away)
        shares = stratified_shares(targets[rows], sizes, options.seed, "blur", number)
        for part, share in zip(parts, shares, strict=True):
            part.append(rows[share])
    plans, names = _plans(source, groups, [torch.cat(part) for part in parts], in_order=False)
    return assemble(source, "blurry", plans, names, options, has_boundaries=boundaries)


def gradual(
    source: Classification,
    n_tasks: int | None = None,
    *,
    width: float = 0.5,
    classes_per_task: int | Sequence[int] | None = None,
    class_order_seed: int | None = None,
    base_fraction: float | None = None,
    **serving: Any,
) -> Stream:
    """One stream without any boundary: the proportions of the classes drift, and samples are served in their order.

    The samples of each class come around a moment of its own, with a normal distribution; the moments are spread
    evenly in the order of the classes (the Gaussian schedule of Shanahan et al. 2021, arXiv:2105.13327). What is called
    a task here is a stretch of the stream, as long as every other, behind which results are written; methods are not
    told. It is tested on the classes whose moments lie in it, and names all classes.

    Args:
        source: The data set.
        n_tasks: Number of stretches.
        width: Standard deviation of a class's moments, in lengths of a stretch, >= 0.
        classes_per_task, class_order_seed, base_fraction: See `class_incremental`.
        **serving: See ``assembly.Serving``.

    Raises:
        InputError: For ``width < 0``, and as `class_incremental` does.
    """
    groups = class_groups(source, n_tasks, classes_per_task, class_order_seed, base_fraction)
    if not isinstance(width, int | float) or not 0 <= width < float("inf"):
        raise InputError(f"width={width!r}", "a finite number >= 0", "set stream.width=0.5")
    options = Serving(**serving)
    order = [label for group in groups for label in group]
    targets = source.train.targets
    moment = torch.full((len(source.class_names),), float("nan"), dtype=torch.float64)
    moment[torch.tensor(order)] = (torch.arange(len(order), dtype=torch.float64) + 0.5) / len(order)
    rng = generator(options.seed, "moments")
    noise = torch.randn(len(targets), generator=rng, dtype=torch.float64)
    times = moment[targets] + noise * width / len(groups)
    rows = times.argsort(stable=True)[: int((~times.isnan()).sum())]
    parts = list(rows.tensor_split(len(groups)))
    plans, names = _plans(source, groups, parts, in_order=True)
    return assemble(source, "gradual", plans, names, options, has_boundaries=False)


def _plans(
    source: Classification, groups: list[list[int]], parts: list[Tensor], *, in_order: bool
) -> tuple[list[Plan], list[str]]:
    """Plans that all name all classes, with these training samples, tested on the classes of each group."""
    order = [label for group in groups for label in group]
    names, labels = [source.class_names[label] for label in order], label_map(source, order, 0)
    tests = [torch.isin(source.test.targets, torch.tensor(group)).nonzero().squeeze(1) for group in groups]
    return [
        Plan(names, labels, train=part, test=test, in_order=in_order) for part, test in zip(parts, tests, strict=True)
    ], names
