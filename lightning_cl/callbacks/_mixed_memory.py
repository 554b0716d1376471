"""Training on the union of the present task's samples and the stored ones."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._drawn import Drawn, behind, own_size
from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.batches import concatenate, select
from lightning_cl.memory import find_labels


class MixedMemory(MemoryMethod):
    """Base of methods that put memory samples behind the current ones in one batch.

    ``batch_size="union"`` adds as many as let every stored sample be seen as often as every current one, on average
    (the number changes from step to step by one); a number adds that many, None as many as the current batch has.
    """

    def __init__(self, memory_size: int, *, batch_size: int | Literal["union"] | None, **memory: Any) -> None:
        self.union = batch_size == "union"
        super().__init__(memory_size, batch_size=None if batch_size == "union" else batch_size, **memory)
        self._owed, self._n_current = 0.0, 0

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Count the present task's samples anew; a checkpoint's count is read later."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._owed, self._n_current = 0.0, 0

    def _take(self, batch: Any) -> list[Drawn]:
        if self.union and not self.off:
            n, trainer = own_size(batch), self._trainer
            if self._n_current == 0:
                self._n_current = self._samples(trainer, n)
            self._owed += len(self.memory) * n / self._n_current
            self.batch_size = int(self._owed)
            self._owed -= self.batch_size
        return super()._take(batch)

    def _samples(self, trainer: Any, n: int) -> int:
        batches = trainer.num_training_batches
        if batches == float("inf"):
            raise InputError(
                f"batch_size='union' of {type(self).__name__} with a loader of unknown length",
                "a training loader with a length",
                "set batch_size, the memory samples per step",
            )
        return int(batches) * n * trainer.world_size

    def _draws(self) -> int:
        return 1 if self.batch_size != 0 else 0

    def _incoming(self, batch: Any, drawn: list[Drawn], hook: Callable[[Any], Any]) -> Any:
        return hook(behind(batch, drawn))

    def _task_batches(self, trainer: Any, module: Any, loader: Any) -> Iterator[tuple[Any, Any]]:
        """Batches of a loader as they come, and as the memory stores them."""
        before = None
        if self._patch is not None:
            before = _compat.hook_owner(trainer, module, "on_before_batch_transfer").on_before_batch_transfer
        # a DataLoader draws a seed from the global generator, and data sets draw more
        with _compat.kept_randomness():
            for batch in loader:
                if batch is None:
                    continue
                yield batch, batch if before is None else before(batch, 0)

    def _labels(self, batch: Any) -> Tensor:
        labels = find_labels(batch, self.label_fn)
        if labels is None:
            raise InputError(
                f"a batch of type {type(batch).__name__} without labels for {type(self).__name__}",
                "an integer leaf (N,) named y, label or target, or the second element of a tuple",
                "give label_fn=lambda batch: batch['my_label']",
            )
        return labels.cpu()

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "owed": self._owed, "n_current": self._n_current}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._owed, self._n_current = state["owed"], state["n_current"]


def by_class(labels: Tensor) -> dict[int, Tensor]:
    """Positions of each class's samples, in order, classes in ascending order."""
    return {int(c): (labels == c).nonzero().flatten() for c in labels.unique()}


def picked(batches: Iterator[tuple[Any, Any]], positions: Tensor) -> Any:
    """The samples at these positions of the batches one after the other, in the order of ``positions``."""
    pieces, found, start = [], [], 0
    for _, batch in batches:
        n = size_of(batch)
        here = positions[(positions >= start) & (positions < start + n)]
        if len(here):
            pieces.append(select(batch, here - start))
            found.append(here)
        start += n
    place = {position: i for i, position in enumerate(torch.cat(found).tolist())}
    order = torch.tensor([place[position] for position in positions.tolist()])
    return select(reduce(concatenate, pieces), order)
