"""What a policy is asked and what it answers; numbered places for its samples."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_cl.memory._index import RowIndex, grown, longs


@dataclass
class Offered:
    """Samples that are offered to a memory, and what is known of them; (n,) each, features (n, D)."""

    n: int
    #: samples offered before
    time: int
    labels: Tensor | None = None
    tasks: Tensor | None = None
    features: Tensor | None = None
    losses: Tensor | None = None


@dataclass
class Plan:
    """Which samples of the batch are kept, and in which rows; each row once."""

    positions: Tensor
    rows: Tensor


def joined(plans: list[Plan]) -> Plan:
    """Several plans as one."""
    return Plan(
        torch.cat([longs(), *(plan.positions for plan in plans)]), torch.cat([longs(), *(plan.rows for plan in plans)])
    )


class Policy:
    """Decides which samples of a stream are held.

    Subclasses say in ``needs`` what they look at, and implement :meth:`offer` (O(batch), or more only where said),
    :meth:`forget`, :meth:`state_dict` and :meth:`load_state_dict`. States name samples by their slots. A class or task
    of which all samples have grown too old has no share any more.
    """

    #: fields of Offered that must be given
    needs: ClassVar[frozenset[str]] = frozenset()

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with an empty memory of ``size`` samples whose rows ``index`` hands out."""
        self.size, self.index, self.max_age = size, index, max_age

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """Decide about samples of one batch."""
        raise NotImplementedError

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """These rows are about to leave, too old or deleted; ``born`` is when each was offered, if that is known."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        raise NotImplementedError

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned; ``index`` already has the samples."""
        raise NotImplementedError


class Shelves:
    """Places 0, 1, ... in groups; a place has a row or is empty (-1). Costs O(places named)."""

    def __init__(self, index: RowIndex) -> None:
        self.index = index
        self.rows: dict[int, Tensor] = {}
        self.count: dict[int, int] = {}
        self._group, self._place = longs(), longs()

    def add_group(self, group: int) -> None:
        """A group without places."""
        self.rows[group], self.count[group] = longs(), 0

    def remove_group(self, group: int) -> None:
        """Forget an empty group."""
        del self.rows[group], self.count[group]

    def put(self, group: int, places: Tensor, most: int | None = None) -> Tensor:
        """Rows for new samples in these places, which are different ones; what was there is gone.

        ``most`` is how many places the group has, where that is known.
        """
        if places.shape[0] == 0:
            return longs()
        shelf = self.rows[group]
        n_places = shelf.shape[0]
        if most is None or n_places < most:
            shelf = self.rows[group] = grown(shelf, int(places.max()) + 1, most)
            n_places = shelf.shape[0]
        rows = shelf.index_select(0, places)  # faster than indexing
        if not self.index.keep_states and (self.count[group] == n_places or int(rows.min()) >= 0):
            return rows
        empty = rows < 0
        n = int(empty.sum())
        if n < rows.shape[0]:
            rows[~empty] = self.index.rewrite(rows[~empty])
        if n:
            rows[empty] = self.index.take(n)
        shelf[places] = rows
        self._group, self._place = grown(self._group, self.index.made), grown(self._place, self.index.made)
        self._group[rows], self._place[rows] = group, places
        self.count[group] += n
        return rows

    def clear(self, rows: Tensor) -> list[tuple[int, Tensor, Tensor]]:
        """Empty the places of these rows: (group, which of ``rows``, their places) for each group concerned."""
        found = []
        groups = self._group[rows]
        for group in groups.unique().tolist():
            which = (groups == group).nonzero().flatten()
            places = self._place[rows[which]]
            self.rows[group][places] = -1
            self.count[group] -= len(which)
            found.append((group, which, places))
        return found

    def keep(self, group: int, places: Tensor) -> None:
        """Only these places stay, and are numbered anew in this order; the rows of the others are dropped."""
        before = grown(self.rows[group], int(places.max()) + 1 if len(places) else 0)
        shelf = before[places]
        self.rows[group] = shelf
        held = shelf[shelf >= 0]
        self._place[held] = (shelf >= 0).nonzero().flatten()
        self._group[before[before >= 0]] = -1
        self._group[held] = group
        gone = before[before >= 0]
        self.index.drop(gone[self._group[gone] < 0])
        self.count[group] = len(held)

    def state_dict(self) -> dict[str, Any]:
        """Groups in order of appearance, and the slot in each place of each (-1: empty)."""
        return {"groups": list(self.rows), "places": [self.index.slots(shelf) for shelf in self.rows.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.rows, self.count = {}, {}
        self._group, self._place = torch.full((2, self.index.made), -1).unbind()
        self._group, self._place = self._group.clone(), self._place.clone()
        for group, slots in zip(state["groups"], state["places"], strict=True):
            held = slots >= 0
            shelf = slots.clone()
            shelf[held] = self.index.rows(slots[held])
            self._group[shelf[held]], self._place[shelf[held]] = group, held.nonzero().flatten()
            self.rows[group], self.count[group] = shelf, int(held.sum())


def equal_share(size: int, groups: int, rank: int, most: int | None = None) -> int:
    """Samples for the group which appeared as number ``rank``: an equal share, the first get the remainder."""
    share = size // groups + (rank < size % groups)
    return share if most is None else min(share, most)


def by_group(keys: Tensor) -> dict[int, np.ndarray]:
    """Group -> positions in ascending order, in order of first appearance."""
    values = keys.numpy()
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    parts = np.split(order, np.flatnonzero(np.diff(ordered)) + 1) if len(order) else []
    return {int(values[part[0]]): part for part in sorted(parts, key=lambda part: int(part[0]))}
