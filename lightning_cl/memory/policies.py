"""Rules that decide which samples of a stream a memory holds."""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from lightning_cl.functional.sampling import draw, reservoir_slots


@dataclass
class Plan:
    """What a memory has to do: copy slots ``source`` to ``target``, then put batch ``positions`` into ``slots``."""

    positions: Tensor
    slots: Tensor
    length: int
    source: Tensor
    target: Tensor


class Policy(Protocol):
    """Decides for each batch offered; costs O(batch) (O(memory) only where said)."""

    needs_labels: ClassVar[bool]

    def offer(self, n: int, labels: Tensor | None, size: int, generator: torch.Generator) -> Plan:
        """Decide about ``n`` samples with ``labels`` (n,) for a memory of ``size`` samples."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""


def _no_moves() -> tuple[Tensor, Tensor]:
    return torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long)


class Reservoir:
    """Every sample seen is held with equal probability (Vitter's algorithm R, exactly uniform). State: one number."""

    needs_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        self.seen = 0

    def offer(self, n: int, labels: Tensor | None, size: int, generator: torch.Generator) -> Plan:
        """See :func:`~lightning_cl.functional.sampling.reservoir_slots`."""
        positions, slots = reservoir_slots(n, self.seen, size, generator)
        self.seen += n
        return Plan(positions, slots, min(self.seen, size), *_no_moves())

    def state_dict(self) -> dict[str, Any]:
        """The number of samples seen."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.seen = state["seen"]


class ClassBalanced:
    """An equal share of the memory for every class seen, and a reservoir within each class.

    The share of C classes in M samples is M // C, and one more for the first M % C classes. When a class appears, the
    others shrink to their new share by removing samples at random (the only O(memory) work, once per class); a class
    with fewer samples than its share leaves the rest empty. Within a class every sample seen is held with equal
    probability at any time.

    Args:
        max_per_class: No class holds more, even while there is room (memories of a fixed number per class).

    State: per class its label, how many were seen, and its slots.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(self, max_per_class: int | None = None) -> None:
        self.max_per_class = max_per_class
        self.seen: dict[int, int] = {}
        self.slots: dict[int, list[int]] = {}
        self.length = 0

    def offer(self, n: int, labels: Tensor | None, size: int, generator: torch.Generator) -> Plan:
        """Make room for classes that are new, then offer each class its samples."""
        assert labels is not None
        values = labels.tolist()
        by_class: dict[int, list[int]] = {}
        for position, label in enumerate(values):
            by_class.setdefault(label, []).append(position)
        moves = _no_moves()
        if any(label not in self.seen for label in by_class):
            for label in by_class:
                self.seen.setdefault(label, 0)
                self.slots.setdefault(label, [])
            moves = self._shrink(size, generator)
        chosen: dict[int, int] = {}
        ranks = {label: rank for rank, label in enumerate(self.seen)}
        for label, members in by_class.items():
            slots = self.slots[label]
            share = self.share(ranks[label], size)
            positions, within = reservoir_slots(len(members), self.seen[label], share, generator)
            self.seen[label] += len(members)
            for position, j in zip(positions.tolist(), within.tolist(), strict=True):
                # a reservoir fills its slots in order, so that a slot it does not have yet is the next one
                while j >= len(slots):
                    slots.append(self.length)
                    self.length += 1
                chosen[slots[j]] = members[position]
        return Plan(
            torch.tensor(list(chosen.values()), dtype=torch.long),
            torch.tensor(list(chosen), dtype=torch.long),
            self.length,
            *moves,
        )

    def share(self, rank: int, size: int) -> int:
        """Samples that the class which appeared as number ``rank`` may hold."""
        share = size // len(self.seen) + (rank < size % len(self.seen))
        return share if self.max_per_class is None else min(share, self.max_per_class)

    def _shrink(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Remove what is beyond each class's share, and close the gaps with the memory's last samples."""
        for rank, slots in enumerate(self.slots.values()):
            share = self.share(rank, size)
            if len(slots) > share:
                # in random order: slots that stay are replaced later with equal probability wherever they stand
                slots[:] = [slots[i] for i in draw(len(slots), share, generator).tolist()] if share else []
        held = sorted(slot for slots in self.slots.values() for slot in slots)
        self.length = len(held)
        taken = set(held)
        gaps = [slot for slot in range(self.length) if slot not in taken]
        movers = held[len(held) - len(gaps) :]
        to = dict(zip(movers, gaps, strict=True))
        for slots in self.slots.values():
            slots[:] = [to.get(slot, slot) for slot in slots]
        return torch.tensor(movers, dtype=torch.long), torch.tensor(gaps, dtype=torch.long)

    def state_dict(self) -> dict[str, Any]:
        """Labels in order of appearance, samples seen of each, and the slots of each."""
        return {
            "labels": list(self.seen),
            "seen": list(self.seen.values()),
            "slots": [torch.tensor(slots, dtype=torch.long) for slots in self.slots.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.seen = dict(zip(state["labels"], state["seen"], strict=True))
        self.slots = {label: s.tolist() for label, s in zip(state["labels"], state["slots"], strict=True)}
        self.length = sum(len(slots) for slots in self.slots.values())


class Greedy:
    """Classes of equal size from the samples that come first: GDumb's sampler (Prabhu et al. 2020, algorithm 1).

    A sample of class c is taken if c is new, or has fewer than M / C of the M places (C classes seen so far). When the
    memory is full it replaces a random sample of the largest class (of equal ones, the one that appeared first).
    State: the slots of each class.
    """

    needs_labels: ClassVar[bool] = True

    def __init__(self) -> None:
        self.slots: dict[int, list[int]] = {}
        self.length = 0

    def offer(self, n: int, labels: Tensor | None, size: int, generator: torch.Generator) -> Plan:
        """Take the samples one by one; a later one of the batch may replace an earlier one."""
        assert labels is not None
        chosen: dict[int, int] = {}
        for position, label in enumerate(labels.tolist()):
            own = self.slots.get(label)
            if own is not None and len(own) * len(self.slots) >= size:
                continue
            if self.length < size:
                slot, self.length = self.length, self.length + 1
            else:
                largest = max(self.slots.values(), key=len)
                slot = largest.pop(int(torch.randint(len(largest), (1,), generator=generator)))
            self.slots.setdefault(label, []).append(slot)
            chosen[slot] = position
        return Plan(
            torch.tensor(list(chosen.values()), dtype=torch.long),
            torch.tensor(list(chosen), dtype=torch.long),
            self.length,
            *_no_moves(),
        )

    def state_dict(self) -> dict[str, Any]:
        """Labels in order of appearance, and the slots of each."""
        return {
            "labels": list(self.slots),
            "slots": [torch.tensor(slots, dtype=torch.long) for slots in self.slots.values()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.slots = {label: s.tolist() for label, s in zip(state["labels"], state["slots"], strict=True)}
        self.length = sum(len(slots) for slots in self.slots.values())


POLICIES: dict[str, type[Reservoir] | type[ClassBalanced] | type[Greedy]] = {
    "reservoir": Reservoir,
    "class_balanced": ClassBalanced,
    "greedy": Greedy,
}
