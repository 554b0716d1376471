"""Hard samples are more likely to be held."""

import heapq
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.memory._index import RowIndex
from lightning_cl.memory.policies._policy import Offered, Plan, Policy, Shelves


class LossAware(Policy):
    r"""A random sample of the stream, weighted by the loss that each sample had when it was offered.

    Sample i with loss :math:`l_i` gets the key :math:`u_i^{1/w_i}`, with :math:`u_i` uniform and
    :math:`w_i=l_i^{power}`; the M samples with the largest keys are held. That is weighted sampling without
    replacement: the first sample is i with probability :math:`w_i/\sum w`, the next likewise among the rest
    (Efraimidis & Spirakis, Information Processing Letters 97, 2006, algorithm A-Res). That hard samples are worth
    keeping is from loss-aware reservoir sampling (Buzzega et al. 2020, arXiv:2010.05595), which weights the choice of
    the sample that is replaced and updates losses at each replay; here a loss is measured once.

    A sample that is deleted leaves room for later ones with keys above all that were ever refused, so that the law
    holds among those that are not deleted. With ``max_age`` the next sample fills the room.

    Costs O(log M) for each sample that enters.

    Args:
        power: 0 makes it a plain reservoir; the larger, the more only the hardest stay.

    State: the place and the key of each sample.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"losses"})

    def __init__(self, power: float = 1.0) -> None:
        if not isinstance(power, int | float) or not 0 <= power < float("inf"):
            raise InputError(f"power={power!r}", "a finite number >= 0", "power=1.0 is the default")
        self.power = float(power)

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with nothing."""
        super().open(size, index, max_age)
        self.shelves = Shelves(index)
        self.shelves.add_group(0)
        #: key of the sample in each place, None where it is empty
        self.keys: list[float | None] = []
        self.heap: list[tuple[float, int]] = []
        self.vacant: list[int] = []
        self.refused = float("-inf")

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """Samples whose keys are large enough replace those with the smallest."""
        losses = offered.losses
        assert losses is not None
        if not bool((losses >= 0).all() and losses.isfinite().all()):
            bad = losses[~((losses >= 0) & losses.isfinite())][0].item()
            raise InputError(f"a loss of {bad} for policy 'loss_aware'", "finite losses >= 0", "give losses_fn")
        u = torch.rand(offered.n, generator=generator, dtype=torch.float64)
        keys = u.log() / losses.double().clamp(min=1e-30).pow(self.power)
        chosen: dict[int, int] = {}
        for position in (keys > self.refused).nonzero().flatten().tolist():
            key = float(keys[position])
            if key <= self.refused:
                continue
            if self.vacant:
                place = self.vacant.pop()
                heapq.heappush(self.heap, (key, place))
            elif len(self.keys) < self.size:
                place = len(self.keys)
                self.keys.append(None)
                heapq.heappush(self.heap, (key, place))
            else:
                smallest = self._smallest()
                if key < smallest[0]:
                    self._refuse(key)
                    continue
                place = smallest[1]
                heapq.heapreplace(self.heap, (key, place))
                self._refuse(smallest[0])
            self.keys[place] = key
            chosen[place] = position
        places = torch.tensor(list(chosen), dtype=torch.long)
        return Plan(torch.tensor(list(chosen.values()), dtype=torch.long), self.shelves.put(0, places))

    def _smallest(self) -> tuple[float, int]:
        while self.keys[self.heap[0][1]] != self.heap[0][0]:
            heapq.heappop(self.heap)  # left from a sample that is gone
        return self.heap[0]

    def _refuse(self, key: float) -> None:
        if self.max_age is None:
            self.refused = max(self.refused, key)

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """Make room."""
        for _, _, places in self.shelves.clear(rows):
            for place in places.tolist():
                self.keys[place] = None
                self.vacant.append(place)

    def state_dict(self) -> dict[str, Any]:
        """Places and keys."""
        keys = torch.tensor([float("-inf") if key is None else key for key in self.keys], dtype=torch.float64)
        return {**self.shelves.state_dict(), "keys": keys, "vacant": list(self.vacant), "refused": self.refused}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.shelves.load_state_dict(state)
        self.keys = [None if key == float("-inf") else key for key in state["keys"].tolist()]
        self.heap = [(key, place) for place, key in enumerate(self.keys) if key is not None]
        heapq.heapify(self.heap)
        self.vacant, self.refused = list(state["vacant"]), state["refused"]
