"""How samples leave a memory: too old, or deleted."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf
from lightning_cl.memory._age import AgeQueue
from lightning_cl.memory._deleted import DeletedIds
from lightning_cl.memory._held import IDS, Held
from lightning_cl.memory._ids import INT64, plain_ids
from lightning_cl.memory._table import BORN
from lightning_cl.memory.policies import Policy


class Leaving(Held):
    """Samples that can be removed."""

    _policy: Policy
    _ages: AgeQueue
    deleted: DeletedIds

    def _expire(self, before: int) -> None:
        born, rows = self._ages.pop(before)
        if len(rows) == 0:
            return
        now = self._table.columns[BORN].at(rows)
        still = (self._table.index.slots(rows) >= 0) & (now == born)
        self._leave(rows[still], expired=True)

    def _leave(self, rows: Tensor, *, expired: bool) -> None:
        if len(rows):
            born = self._table.columns.get(BORN)
            self._policy.forget(rows, born.at(rows) if born is not None else None, expired)  # type: ignore[arg-type]
            self._table.index.drop(rows)
            self._table.wipe(self._table.index.came_free())

    def delete(self, ids: Any) -> int:
        """Remove samples by their ids, for good: they are overwritten, and not stored again when offered again.

        Files of a memory on disk are overwritten too, for all states; other checkpoints that were written before hold
        what they hold. In a distributed job every process must call this.

        Args:
            ids: Integers or strings, as ``id_fn`` or the batches have them: one, a list, a tensor or an array. They
                need not be held.

        Returns:
            How many samples were held.

        Raises:
            InputError: If samples are held that have no id, or for ids that are neither integers nor strings.
        """
        wanted = plain_ids(ids)
        if len(self) and IDS not in self._table.columns:
            raise InputError(
                "delete() on a memory of samples without ids",
                "an integer leaf (N,) named id, sample_id or index",
                "give id_fn=lambda batch: batch['my_id']",
            )
        self.deleted.add(wanted)
        return self._remove_deleted(wanted)

    def _remove_deleted(self, wanted: list[int | str]) -> int:
        if IDS not in self._table.columns:
            return 0
        rows = rows_named(self._table.everywhere(IDS), wanted)
        held = rows[self._table.index.slots(rows) >= 0]
        self._leave(held, expired=False)
        self._table.wipe(rows, deleted=True)
        return len(held)


def rows_named(stored: Leaf, wanted: Sequence[int | str]) -> Tensor:
    """Positions of the ids in ``stored`` that are among the wanted; ``5`` and ``"5"`` are different ids."""
    if isinstance(stored, Tensor):
        numbers = torch.tensor([i for i in wanted if isinstance(i, int) and i in INT64], dtype=torch.long)
        return torch.isin(stored.long(), numbers).nonzero().flatten()
    names = {*wanted}
    return torch.tensor([row for row, name in enumerate(stored) if name in names], dtype=torch.long)
