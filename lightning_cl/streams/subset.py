"""A part of a data set: some of its classes, a few samples of each."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.source import Classification, Domains


def subset(
    dataset: Classification,
    classes: Sequence[str | int] | None = None,
    per_class: int | None = None,
    seed: int = 0,
) -> Classification:
    """Some classes of a data set, and a given number of training samples of each; all of their test samples.

    Args:
        dataset: The data set.
        classes: Names of the classes that stay, in their new order; None for all.
        per_class: Training samples that stay of each class, drawn at random; None for all.
        seed: Of that draw, which is a function of (seed, class name).

    Raises:
        InputError: For a class that the data set does not have, one named twice, or fewer samples than ``per_class``.

    Example:
        >>> from lightning_cl.streams import digits
        >>> few = subset(digits(), ["7", "3"], per_class=10)
        >>> few.class_names, len(few.train), few.train.targets.bincount().tolist()
        (['7', '3'], 20, [10, 10])
    """
    known = dataset.class_names
    names = known if classes is None else [str(name) for name in classes]
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) < len(names):
        given = f"classes={list(names)}"
        raise InputError(given, f"some of {', '.join(known[:20])}, each once", "leave it out for all")
    if per_class is not None and (isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 1):
        raise InputError(f"per_class={per_class!r}", "an integer >= 1, or null for all samples", "try per_class=10")
    places = [known.index(name) for name in names]
    new = torch.full((len(known),), -1)
    new[places] = torch.arange(len(places))
    parts: list[Tensor] = []
    for part, count in ((dataset.train, per_class), (dataset.test, None)):
        rows = [(part.targets == place).nonzero().squeeze(1) for place in places]
        if count is not None:
            rows = [_drawn(own, count, seed, name) for own, name in zip(rows, names, strict=True)]
        parts.append(torch.cat(rows).sort().values)
    train, test = parts
    domains = dataset.domains
    if domains is not None:
        domains = Domains(domains.names, domains.train[train], domains.test[test])
    return Classification(
        dataset.train.view(train, new[dataset.train.targets[train]]),
        dataset.test.view(test, new[dataset.test.targets[test]]),
        names,
        domains=domains,
        tokenizer=dataset.tokenizer,
    )


def _drawn(rows: Tensor, count: int, seed: int, name: str) -> Tensor:
    if len(rows) < count:
        raise InputError(
            f"per_class={count} of class {name!r} with {len(rows)} training samples",
            f"at most {len(rows)}",
            f"set per_class={max(1, len(rows))}, or leave the class out",
        )
    return rows[torch.randperm(len(rows), generator=generator(seed, "subset", name))[:count]]
