"""The newest samples of every class."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_cl.memory._index import RowIndex
from lightning_cl.memory.policies._policy import Offered, Plan, Policy, Shelves, by_group, equal_share, joined


class Ring(Policy):
    """First in, first out within each class: the newest samples of it, as many as its share (Chaudhry et al. 2019).

    The share of C classes in M samples is M // C, and one more for the first M % C classes (arXiv:1902.10486 calls it
    a ring buffer). When a class appears the others keep their newest. Nothing is drawn. A deletion costs O(share).

    State: the place of each sample, and where each ring goes on.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with no class."""
        super().open(size, index, max_age)
        self.shelves = Shelves(index)
        #: places in use; while they are fewer than the share, the next sample gets a new one
        self.used: dict[int, int] = {}
        #: place of the oldest sample in use
        self.head: dict[int, int] = {}

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """The last samples of each class go where its oldest are."""
        assert offered.labels is not None
        members = {group: torch.from_numpy(found) for group, found in by_group(offered.labels).items()}
        new = [group for group in members if group not in self.used]
        for group in new:
            self.shelves.add_group(group)
            self.used[group] = self.head[group] = 0
        ranks = {group: rank for rank, group in enumerate(self.used)}
        for group in self.used if new else ():
            share = equal_share(self.size, len(ranks), ranks[group])
            if self.used[group] > share:
                self._pack(group, share)
        plans = []
        for group, samples in members.items():
            share = equal_share(self.size, len(ranks), ranks[group])
            samples = samples[max(0, len(samples) - share) :]
            if len(samples) == 0:
                continue
            used, head = self.used[group], self.head[group]
            fresh = min(len(samples), share - used)
            again = len(samples) - fresh
            self.used[group] = used + fresh
            places = torch.cat([torch.arange(used, used + fresh), (head + torch.arange(again)) % share])
            self.head[group] = (head + again) % share
            plans.append(Plan(samples, self.shelves.put(group, places)))
        return joined(plans)

    def _pack(self, group: int, share: int) -> None:
        """The newest ``share`` samples, in order of age, without gaps."""
        places = (torch.arange(self.used[group]) + self.head[group]) % max(1, self.used[group])
        held = places[self.shelves.rows[group][places] >= 0]
        kept = held[max(0, len(held) - share) :]
        self.shelves.keep(group, kept)
        self.used[group], self.head[group] = len(kept), 0

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """Close gaps, except where the ring goes on: there the oldest are."""
        for group, _, _ in self.shelves.clear(rows):
            if not expired:
                self._pack(group, self.used[group])
            elif self.shelves.count[group] == 0:
                self.shelves.remove_group(group)
                del self.used[group], self.head[group]

    def state_dict(self) -> dict[str, Any]:
        """Places, and where each ring goes on."""
        return {**self.shelves.state_dict(), "used": list(self.used.values()), "head": list(self.head.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.shelves.load_state_dict(state)
        self.used = dict(zip(state["groups"], state["used"], strict=True))
        self.head = dict(zip(state["groups"], state["head"], strict=True))
