"""How much a fit trains on, and what a budget gives to each task of a sequence."""

from collections.abc import Sequence


def samples_of_fit(
    n: int,
    batch_size: int,
    *,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    accumulate: int = 1,
    drop_last: bool = False,
    limit_batches: int | float = 1.0,
    updates_per_batch: int = 1,
) -> int | None:
    """Samples that a fit trains on, counted as often as they are seen; None if it has no end.

    It ends after ``max_epochs`` or ``max_steps`` optimizer steps, whichever comes first; the last step of an epoch may
    accumulate fewer batches than the others.

    Args:
        n: Samples of the training data.
        batch_size: Samples per batch.
        max_epochs, max_steps: Limits as a Trainer has them; None or -1 for none.
        accumulate: Batches per optimizer step.
        drop_last: Whether a last batch that is not full is left out.
        limit_batches: Batches of an epoch that are used: a number (int) or a share (float).
        updates_per_batch: How often each batch is served, one time after the other.

    Example:
        >>> samples_of_fit(100, 30, max_epochs=2), samples_of_fit(100, 30, max_epochs=2, drop_last=True)
        (200, 180)
        >>> samples_of_fit(100, 30, max_steps=5)
        130
    """
    batches = n // batch_size if drop_last else -(-n // batch_size)
    batches *= updates_per_batch
    batches = min(batches, limit_batches) if isinstance(limit_batches, int) else int(batches * limit_batches)

    def first(count: int) -> int:
        whole, more = divmod(count, updates_per_batch)
        before = min(whole * batch_size, n)
        return updates_per_batch * before + more * min(batch_size, n - before)

    per_epoch, found = first(batches), []
    if max_epochs is not None and max_epochs >= 0:
        found.append(max_epochs * per_epoch)
    if max_steps is not None and max_steps >= 0:
        steps = -(-batches // accumulate)
        epochs, rest = divmod(max_steps, steps) if steps else (0, 0)
        found.append(epochs * per_epoch + first(rest * accumulate))
    return min(found, default=None)


def budget_until(total: float, samples: Sequence[int], task: int) -> float:
    """What may have been spent when a task's training ends: the shares of the total so far.

    What a task leaves of its share passes on to the next.

    Args:
        total: The budget of all tasks.
        samples: What the shares are proportional to, for each task.
        task: The task.

    Example:
        >>> [budget_until(60.0, [10, 20, 30], task) for task in range(3)]
        [10.0, 30.0, 60.0]
    """
    return total * (sum(samples[: task + 1]) / sum(samples))
