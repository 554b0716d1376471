"""Uniform samples of a stream: one reservoir, or one for each of several groups."""

import heapq
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_cl.functional.sampling import draw, reservoir_places
from lightning_cl.memory._index import RowIndex, longs
from lightning_cl.memory.policies._policy import Offered, Plan, Policy, Shelves, by_group, joined

#: Places of a group, different ones, and the position of the sample that each gets.
Entries = tuple[np.ndarray, np.ndarray]
NOTHING: Entries = (np.empty(0, np.int64), np.empty(0, np.int64))


class Reservoir(Policy):
    """Every sample seen is held with equal probability: Vitter's algorithm R, exactly uniform.

    A sample that is deleted leaves an empty place, which is filled when a later draw falls on it: at any time each
    sample seen and not deleted is held with probability ``size / seen``.

    With ``max_age`` A the samples held are uniform among the last A offered (Babcock, Datar & Motwani 2002): from the
    A-th sample on a new one enters if, and only if, the one that has just become too old was held, and takes its place.

    State: numbers, and the place of each sample.
    """

    #: whether, with ``max_age``, samples enter only for those that leave
    windowed: ClassVar[bool] = True
    #: later samples are drawn as if so many had been seen
    horizon: int | None = None

    def open(self, size: int, index: RowIndex, max_age: int | None) -> None:
        """Begin with no group."""
        super().open(size, index, max_age)
        self.shelves = Shelves(index)
        self.seen: dict[int, int] = {}
        self.used: dict[int, int] = {}
        # for windows: when the first and the last sample of it were offered
        self.first: dict[int, int] = {}
        self.last: dict[int, int] = {}
        # when an empty place may be taken again, and which it is
        self.holes: dict[int, list[tuple[int, int]]] = {}

    def keys(self, offered: Offered) -> Tensor | None:
        """Group of each sample; None if all are in one."""
        return None

    def share(self, rank: int) -> int:
        """Samples that the group which appeared as number ``rank`` may hold."""
        return self.size

    def offer(self, offered: Offered, generator: torch.Generator) -> Plan:
        """Make room for groups that are new, then offer each group its samples."""
        keys = self.keys(offered)
        members = {0: np.arange(offered.n)} if keys is None else by_group(keys)
        if self.max_age is not None and self.windowed:
            self._end_windows(offered.time, members)
        self._appear(list(members), generator)
        ranks = {group: rank for rank, group in enumerate(self.seen)}
        shares = {group: self.share(ranks[group]) for group in members}
        if self.max_age is not None and self.windowed:
            chosen = {g: self._window(g, p, offered.time, shares[g], generator) for g, p in members.items()}
        else:
            chosen = self._draw(members, shares, generator)
        plans = [self._put(group, shares[group], *entries) for group, entries in chosen.items() if len(entries[0])]
        return plans[0] if len(plans) == 1 else joined(plans)

    def _end_windows(self, time: int, members: dict[int, np.ndarray]) -> None:
        """Groups of which all samples are too old start anew when they come again; until then they have no share."""
        assert self.max_age is not None
        for group in [g for g, last in self.last.items() if time - last >= self.max_age]:
            self.shelves.remove_group(group)
            for counts in (self.seen, self.used, self.holes, self.first, self.last):
                counts.pop(group, None)
        self.last.update({group: time + int(positions[-1]) for group, positions in members.items()})

    def _put(self, group: int, share: int, places: np.ndarray, positions: np.ndarray) -> Plan:
        return Plan(torch.from_numpy(positions), self.shelves.put(group, torch.from_numpy(places), share))

    def _appear(self, groups: list[int], generator: torch.Generator) -> None:
        new = [group for group in groups if group not in self.seen]
        for group in new:
            self.seen[group] = self.used[group] = 0
            self.shelves.add_group(group)
        if not new or len(self.seen) == len(new):
            return
        for rank, group in enumerate(self.seen):
            share, used = self.share(rank), self.used[group]
            if used > share:
                # in random order: places are replaced later with equal probability whichever they are
                self.shelves.keep(group, draw(used, share, generator) if share else longs())
                self.used[group] = share
                empty = (self.shelves.rows[group] < 0).nonzero().flatten().tolist()
                self.holes[group] = [(0, place) for place in empty]

    def _draw(
        self, members: dict[int, np.ndarray], shares: dict[int, int], generator: torch.Generator
    ) -> dict[int, Entries]:
        """Places and positions for each group; all groups draw at once."""
        counts = [len(p) for p in members.values()]
        each = [np.arange(self.seen[g], self.seen[g] + len(p)) for g, p in members.items()]
        times = each[0] if len(each) == 1 else np.concatenate(each)
        capacity = (
            self.size if len(counts) == 1 and self.size in shares.values() else np.repeat([*shares.values()], counts)
        )
        places = reservoir_places(times, capacity, generator, self.horizon)
        chosen: dict[int, Entries] = {}
        start = 0
        for group, samples in members.items():
            own = places[start : start + len(samples)]
            start += len(samples)
            entered = (own >= 0).nonzero()[0]
            if len(entered):
                chosen[group] = _last(own[entered], samples[entered])
            self.seen[group] += len(samples)
            self.used[group] = min(shares[group], self.seen[group])
        return chosen

    def _window(self, group: int, positions: np.ndarray, time: int, share: int, generator: torch.Generator) -> Entries:
        """Places and positions; a reservoir until the group's first sample is too old, then one for one."""
        assert self.max_age is not None
        first = self.first.setdefault(group, time + int(positions[0]))
        early = positions[positions + time < first + self.max_age]
        drawn = self._draw({group: early}, {group: share}, generator).get(group, NOTHING) if len(early) else NOTHING
        chosen = _places(*drawn)
        late = positions[len(early) :].tolist()
        holes, shelf = self.holes.setdefault(group, []), self.shelves.rows[group]
        self.seen[group] += len(late)
        for position in late:
            while holes and holes[0][0] <= time + position:
                place = heapq.heappop(holes)[1]
                if place not in chosen and (place >= len(shelf) or int(shelf[place]) < 0):
                    chosen[place] = position
                    break
            else:
                if self.used[group] < share:
                    chosen[self.used[group]] = position
                    self.used[group] += 1
        return _arrays(chosen)

    def forget(self, rows: Tensor, born: Tensor | None, expired: bool) -> None:
        """Empty the places."""
        for group, which, places in self.shelves.clear(rows):
            if self.max_age is None or born is None:
                continue
            holes = self.holes.setdefault(group, [])
            for place, time in zip(places.tolist(), born[which].tolist(), strict=True):
                heapq.heappush(holes, (time + self.max_age, place))

    def state_dict(self) -> dict[str, Any]:
        """For each group its number of samples seen, and the slot in each place."""
        groups = list(self.seen)
        return {
            **self.shelves.state_dict(),
            "seen": [self.seen[g] for g in groups],
            "used": [self.used[g] for g in groups],
            "window": [[self.first.get(g, -1), self.last.get(g, -1)] for g in groups],
            "holes": [[list(hole) for hole in sorted(self.holes.get(g, []))] for g in groups],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.shelves.load_state_dict(state)
        groups = state["groups"]
        self.seen = dict(zip(groups, state["seen"], strict=True))
        self.used = dict(zip(groups, state["used"], strict=True))
        windows = [(g, *window) for g, window in zip(groups, state["window"], strict=True)]
        self.first = {g: first for g, first, _ in windows if first >= 0}
        self.last = {g: last for g, _, last in windows if last >= 0}
        self.holes = {g: [(a, b) for a, b in holes] for g, holes in zip(groups, state["holes"], strict=True)}


def _last(places: np.ndarray, positions: np.ndarray) -> Entries:
    """Of several samples in one place the last stays, as it would one by one."""
    if len(set(places.tolist())) == len(places):
        return places, positions
    return _arrays(_places(places, positions))


def _places(places: np.ndarray, positions: np.ndarray) -> dict[int, int]:
    return dict(zip(places.tolist(), positions.tolist(), strict=True))


def _arrays(chosen: dict[int, int]) -> Entries:
    places, positions = (np.fromiter(part, np.int64, len(chosen)) for part in (chosen, chosen.values()))
    return places, positions
