"""Learning rates that rise before they follow a scheduler."""

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, ReduceLROnPlateau, SequentialLR

from lightning_cl.errors import InputError
from lightning_cl.finetuning.phases import is_number


def warmup(
    optimizer: torch.optim.Optimizer,
    steps: int,
    after: LRScheduler | Callable[[torch.optim.Optimizer], Any] | None = None,
    *,
    start_factor: float = 0.01,
) -> Any:
    """Each group's learning rate rises linearly to its own value, then ``after`` goes on.

    It is made of torch's LinearLR and SequentialLR. ``steps`` counts calls of the scheduler's ``step()``: optimizer
    steps with Lightning's ``"interval": "step"``, else epochs. ``after`` begins to count when the warm-up is over.

    Args:
        optimizer: With any number of groups, each with a rate of its own.
        steps: Of the warm-up, >= 0; 0 gives ``after`` alone.
        after: A scheduler of this optimizer, ``optimizer -> scheduler``, or None for constant rates.
        start_factor: What the first step's rates are multiplied by, in (0, 1].

    Raises:
        InputError: For values outside these, a scheduler of another optimizer, or ReduceLROnPlateau, which reads a
            metric that SequentialLR does not hand over.

    Example:
        >>> sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler, rates = warmup(sgd, 2, start_factor=0.5), []
        >>> for _ in range(4):
        ...     rates.append(sgd.param_groups[0]["lr"])
        ...     sgd.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 0.75, 1.0, 1.0]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise InputError(f"steps={steps!r} of a warm-up", "an integer >= 0", "try steps=100")
    if not is_number(start_factor) or not 0 < start_factor <= 1:
        raise InputError(f"start_factor={start_factor!r}", "a number in (0, 1]", "leave it out for 0.01")
    made: Any = after
    if after is not None and not isinstance(after, LRScheduler):
        made = after(optimizer)
    if isinstance(made, ReduceLROnPlateau):
        raise InputError("warmup(after=ReduceLROnPlateau)", "a scheduler that reads no metric", "use CosineAnnealingLR")
    if made is not None and made.optimizer is not optimizer:
        raise InputError(
            "warmup(after=...) of another optimizer", "a scheduler of this one", "pass optimizer -> scheduler"
        )
    if steps == 0:
        return made if made is not None else LinearLR(optimizer, 1.0, total_iters=0)
    rising = LinearLR(optimizer, start_factor, total_iters=steps)
    return rising if made is None else SequentialLR(optimizer, [rising, made], milestones=[steps])


def warmup_cosine(
    optimizer: torch.optim.Optimizer, *, total_steps: int, warmup_fraction: float = 0.1, start_factor: float = 0.01
) -> Any:
    """A linear warm-up, then half a cosine down to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983).

    :class:`~lightning_cl.FineTuningModule` gives ``total_steps``, what the training has, to a scheduler that asks.

    Args:
        optimizer: With any number of groups.
        total_steps: Of the training, >= 1.
        warmup_fraction: Share of it that is warm-up, in [0, 1).
        start_factor: See :func:`warmup`.

    Raises:
        InputError: For values outside these.
    """
    if isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1:
        raise InputError(f"total_steps={total_steps!r}", "an integer >= 1", "set trainer.max_epochs or max_steps")
    if not is_number(warmup_fraction) or not 0 <= warmup_fraction < 1:
        raise InputError(f"warmup_fraction={warmup_fraction!r}", "a number in [0, 1)", "leave it out for 0.1")
    steps = int(warmup_fraction * total_steps)
    rest = max(1, total_steps - steps)
    return warmup(optimizer, steps, lambda o: CosineAnnealingLR(o, T_max=rest), start_factor=start_factor)
