"""The monitored metric of the epoch in which a checkpoint is written: Lightning saves neither it nor its parts."""

from typing import Any

import torch

from lightning_cl import _compat_resume as resuming
from lightning_cl.callbacks._gather import world_size
from lightning_cl.errors import InputError

#: of one process: what is accumulated (None if that cannot be told), and the epoch's value if no batch follows
Known = tuple[list[float] | None, float | None]


class EpochMetric:
    """Follows what is logged under the name that a plateau monitors, so that a resumed epoch ends with its value.

    Of means, sums, maxima and minima of numbers logged in training the parts so far are kept, from each process; of
    any metric the value, where the checkpoint is written behind the epoch's last batch or behind a validation.
    """

    def __init__(self) -> None:
        self._known: Known | None = None
        self._loaded: Known | None = None
        self._saved: list[Any] = []  # of each process

    def epoch_is_over(self) -> None:
        """Nothing is logged of the next one."""
        self._known = self._loaded = None
        self._saved = []

    def batch_ends(self, trainer: Any, name: str) -> None:
        """In ``on_train_batch_end``; every process must call this."""
        metric = resuming.logged_in_training(trainer, name)
        if self._loaded is not None and self._loaded[1] is not None:
            self._loaded = None  # a value at which no batch followed: of a validation, then
        if metric is None:
            self._known = None
            return
        if self._loaded is not None and self._loaded[0] is not None:
            resuming.put_before(metric, self._loaded[0])
        self._loaded = None
        so_far = resuming.so_far(metric)
        complete = metric.meta.fx != "on_train_batch_end" and resuming.no_batch_follows(trainer)
        self._known = so_far, resuming.of_the_epoch(metric, name) if complete else None

    def validation_ends(self, trainer: Any, name: str) -> None:
        """In ``on_validation_end``: what training logs under this name goes before."""
        if self._known is None and name in trainer.callback_metrics:
            self._known = [], float(trainer.callback_metrics[name])

    def resume(self, trainer: Any, name: str) -> None:
        """In ``on_train_start``: take what this process saved.

        Raises:
            InputError: If a part of the epoch's value is in no checkpoint.
        """
        saved, self._saved = self._saved, []
        if not saved:
            return
        parts, value = saved[trainer.global_rank] if len(saved) == trainer.world_size else _spread(saved)
        if parts is None and value is None:
            raise unknown(name)
        self._loaded = parts, value

    def value(self, trainer: Any, name: str) -> float | None:
        """What the epoch ends with; None if it is not logged."""
        if self._loaded is not None and self._loaded[1] is not None:
            return self._loaded[1]
        found = trainer.callback_metrics.get(name)
        return None if found is None else float(found)

    def state(self) -> list[Any]:
        """Of each process what it knows; every process must call this. Empty between epochs."""
        known = self._known or self._loaded
        if known is None:
            return []
        every: list[Any] = [known]
        if world_size() > 1:
            every = [None] * world_size()
            torch.distributed.all_gather_object(every, known)
        return [list(each) for each in every]

    def load(self, state: list[Any]) -> None:
        """Keep it for :meth:`resume`."""
        self._known = self._loaded = None
        self._saved = state


def unknown(name: str) -> InputError:
    """For a checkpoint without which a resumed fit would thaw at another step, silently."""
    return InputError(
        f"a checkpoint from inside an epoch that does not hold what was logged of {name!r}, of which a plateau is "
        "waited for",
        "a metric logged as a number in training_step, or in validation_step",
        "resume from an epoch's end (ModelCheckpoint(every_n_epochs=1)); log it so in the next fit",
    )


def _spread(saved: list[Any]) -> Known:
    """For another number of processes: the same mean in each."""
    parts = [part for part, _ in saved]
    values = [value for _, value in saved if value is not None]
    value = sum(values) / len(values) if values else None
    if any(part is None for part in parts):
        return None, value
    return [sum(column) / len(parts) for column in zip(*parts, strict=True)], value
