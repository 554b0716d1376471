"""The greedy balancing sampler of GDumb."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_cl.memory._index import RowIndex, longs
from lightning_cl.memory.policies._policy import Offered, Plan, Policy, Shelves


class GDumb(Policy):
    """Greedy and class-balanced (Prabhu, Torr & Dokania, ECCV 2020, Algorithm 1: the greedy balancing sampler).

    A sample is taken if its class is new, or has fewer than M divided by the number of classes seen; in a full memory
    it replaces a random sample of the class that has most (of several, the one seen first). All others are refused, so
    that the first samples of a class are kept, and the memory stays full. Of a batch with replacements the classes
    concerned are walked through, O(memory); all other work is O(batch).

    State: the samples of each class in order.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels"})

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with no class."""
        super().open(size, index, max_age)
        self.shelves = Shelves(index)

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """One sample after the other; most are refused."""
        assert offered.labels is not None
        count = self.shelves.count
        total = self.index.length
        # what a class holds: places as they are, and positions in this batch as -1 - position
        held: dict[int, list[int]] = {}
        added: dict[int, list[int]] = {}
        for position, label in enumerate(offered.labels.tolist()):
            known = label in count
            if known and count[label] * len(count) >= self.size:
                continue
            if not known:
                self.shelves.add_group(label)
            if total >= self.size:
                largest = max(count, key=count.__getitem__)
                if largest not in held:
                    held[largest] = list(range(count[largest] - len(added.get(largest, []))))
                    held[largest] += added.pop(largest, [])
                members = held[largest]
                chosen = int(torch.randint(len(members), (), generator=generator))
                members[chosen] = members[-1]
                members.pop()
                count[largest] -= 1
            else:
                total += 1
            (held[label] if label in held else added.setdefault(label, [])).append(-1 - position)
            count[label] += 1
        return self._carry_out(held, added)

    def _carry_out(self, held: dict[int, list[int]], added: dict[int, list[int]]) -> Plan:
        for group, members in held.items():
            stay = [place for place in members if place >= 0]
            self.shelves.keep(group, torch.tensor(stay, dtype=torch.long))
        positions, rows = [longs()], [longs()]
        entering = {**added, **{g: [entry for entry in members if entry < 0] for g, members in held.items()}}
        for group, entries in entering.items():
            shelf = self.shelves.rows[group]
            start = int((shelf >= 0).sum()) if group in held else self.shelves.count[group] - len(entries)
            self.shelves.count[group] = start
            positions.append(-1 - torch.tensor(entries, dtype=torch.long))
            rows.append(self.shelves.put(group, torch.arange(start, start + len(entries))))
        return Plan(torch.cat(positions), torch.cat(rows))

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """Close the gaps."""
        for group, _, _ in self.shelves.clear(rows):
            self.shelves.keep(group, (self.shelves.rows[group] >= 0).nonzero().flatten())
            if expired and self.shelves.count[group] == 0:
                self.shelves.remove_group(group)

    def state_dict(self) -> dict[str, Any]:
        """Places."""
        return self.shelves.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.shelves.load_state_dict(state)
