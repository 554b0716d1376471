"""How classes and samples are shared out: sizes, orders, stratified splits."""

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import generator


def task_sizes(total: int, n_tasks: int, base_fraction: float | None, what: str) -> list[int]:
    """Sizes of ``n_tasks`` shares of ``total`` classes or samples, none empty; earlier ones get what is left over.

    With ``base_fraction`` the first share is that part of the total and the others are equal: the production shape of
    one large task and many small updates.

    Raises:
        InputError: If ``n_tasks < 1``, there are too few for the tasks, or ``base_fraction`` is not inside (0, 1).

    Example:
        >>> task_sizes(10, 5, None, "classes"), task_sizes(10, 5, 0.6, "classes")
        ([2, 2, 2, 2, 2], [6, 1, 1, 1, 1])
    """
    if n_tasks < 1:
        raise InputError(f"n_tasks={n_tasks!r}", "an integer >= 1", "set stream.n_tasks=5")
    if base_fraction is None:
        return _equal(total, n_tasks, what)
    if not 0 < base_fraction < 1:
        raise InputError(
            f"base_fraction={base_fraction!r}", "a fraction inside (0, 1)", "set base_fraction=0.6 or null"
        )
    if n_tasks == 1:
        raise InputError("n_tasks=1 with a base_fraction", "n_tasks >= 2", "set base_fraction=null")
    first = max(1, round(base_fraction * total))
    return [first, *_equal(total - first, n_tasks - 1, f"{what} after the first task's {first}")]


def _equal(total: int, parts: int, what: str) -> list[int]:
    if total < parts:
        raise InputError(f"{total} {what} for {parts} tasks", f"at least {parts} {what}", f"set n_tasks <= {total}")
    return [total // parts + (part < total % parts) for part in range(parts)]


def class_order(n_classes: int, seed: int | None) -> list[int]:
    """The order in which classes are met: natural (None) or a permutation that depends on ``seed`` alone."""
    if seed is None:
        return list(range(n_classes))
    return torch.randperm(n_classes, generator=generator(seed, "class order")).tolist()


def stratified_shares(targets: Tensor, sizes: list[int], *seed: int | str) -> list[Tensor]:
    """Disjoint random shares of the samples, of the given sizes, each class spread over them in proportion.

    Samples are shuffled within their class and the classes interleaved evenly, so that any stretch of the resulting
    order holds every class in proportion, as far as whole samples allow.

    Args:
        targets: Labels (N,).
        sizes: Sizes of the shares; their sum is at most N.
        seed: What the shuffle depends on.

    Returns:
        Sorted index tensors, one per share.
    """
    rng = generator(*seed)
    shuffled = torch.randperm(len(targets), generator=rng)
    labels = targets[shuffled]
    position = torch.empty(len(targets), dtype=torch.float64)
    for label in labels.unique():
        own = (labels == label).nonzero().squeeze(1)
        # a random start per class, or small classes would all come at the same places
        start = torch.rand(1, generator=rng, dtype=torch.float64)
        position[own] = (torch.arange(len(own)) + start) / len(own)
    order = shuffled[position.argsort(stable=True)]
    return [share.sort().values for share in order[: sum(sizes)].split(sizes)]


def hold_out(targets: Tensor, fraction: float, *seed: int | str) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out): a stratified random part of ``fraction`` of the samples is held out.

    Raises:
        InputError: If ``fraction`` is not inside [0, 1).
    """
    if not 0 <= fraction < 1:
        raise InputError(
            f"validation_fraction={fraction!r}",
            "a fraction inside [0, 1)",
            "set validation_fraction=0.1, or 0 for none",
        )
    n = len(targets)
    held = 0 if fraction == 0 or n < 2 else min(n - 1, max(1, round(fraction * n)))
    kept_indices, held_indices = stratified_shares(targets, [n - held, held], *seed)
    return kept_indices, held_indices
