"""The samples of a class whose mean is nearest to the class's."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from lightning_cl.errors import InputError
from lightning_cl.functional.herding import herding_order
from lightning_cl.memory._index import RowIndex, longs
from lightning_cl.memory.policies._policy import Offered, Plan, Policy, Shelves, by_group, equal_share


class Herding(Policy):
    """iCaRL's exemplars (Rebuffi et al. 2017, arXiv:1611.07725): per class a list in order of importance.

    The list is made by :func:`~lightning_cl.functional.herding.herding_order` from the features of all samples of the
    class, scaled to length 1, so that each batch offered must hold all of the classes in it (callbacks offer a whole
    task at its end). The share of C classes in M samples is M // C, and one more for the first M % C; when a class
    appears, the ends of the other lists are dropped. Nothing is drawn.

    A class that is offered again (domain-incremental streams) has its lists merged: entry i (from 1) of a list made
    from n samples stands at i / n, so that each offering is represented by its best, in proportion to its size.

    State: the place of each sample, and its position in the list.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"labels", "features"})

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with no class."""
        super().open(size, index, max_age)
        self.shelves = Shelves(index)
        self.ranks: dict[int, Tensor] = {}

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """Make each class's list, and drop the ends of the others."""
        assert offered.labels is not None
        assert offered.features is not None
        if not bool(offered.features.isfinite().all()):
            raise InputError("features that are not finite for policy 'herding'", "finite features", "give features_fn")
        # direction only, as in iCaRL
        features = normalize(offered.features.flatten(1).double(), dim=1)
        members = {group: torch.from_numpy(found) for group, found in by_group(offered.labels).items()}
        for group in members:
            if group not in self.ranks:
                self.shelves.add_group(group)
                self.ranks[group] = torch.empty(0, dtype=torch.float64)
        shares = {g: equal_share(self.size, len(self.ranks), rank) for rank, g in enumerate(self.ranks)}
        positions, rows = [longs()], [longs()]
        for group, share in shares.items():
            old, new, order = self.ranks[group], torch.empty(0, dtype=torch.float64), longs()
            if group in members:
                samples = members[group]
                order = samples[herding_order(features[samples], min(share, len(samples)))]
                new = torch.arange(1, len(order) + 1, dtype=torch.float64) / len(samples)
            kept = torch.cat([old, new]).argsort(stable=True)[:share]
            stay, enter = kept[kept < len(old)], (kept[kept >= len(old)] - len(old)).sort().values
            if len(stay) < len(old):
                self.shelves.keep(group, stay)
                old = old[stay]
            positions.append(order[enter])
            rows.append(self.shelves.put(group, torch.arange(len(old), len(old) + len(enter))))
            self.ranks[group] = torch.cat([old, new[enter]])
        return Plan(torch.cat(positions), torch.cat(rows))

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """Close the gaps in the lists."""
        for group, _, _ in self.shelves.clear(rows):
            n = len(self.ranks[group])
            held = (self.shelves.rows[group][:n] >= 0).nonzero().flatten()
            self.shelves.keep(group, held)
            self.ranks[group] = self.ranks[group][held]
            if expired and len(held) == 0:
                self.shelves.remove_group(group)
                del self.ranks[group]

    def state_dict(self) -> dict[str, Any]:
        """Places and positions."""
        return {**self.shelves.state_dict(), "ranks": [ranks.clone() for ranks in self.ranks.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.shelves.load_state_dict(state)
        self.ranks = {g: ranks.clone() for g, ranks in zip(state["groups"], state["ranks"], strict=True)}
