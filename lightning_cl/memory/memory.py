"""Samples of the past, kept within a fixed number."""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, leaves, select_leaf
from lightning_cl.functional.sampling import draw
from lightning_cl.functional.seeding import generator
from lightning_cl.memory._storage import ListRows, TensorRows
from lightning_cl.memory.policies import POLICIES, ClassBalanced, Policy


class Memory:
    """A fixed number of samples from a stream of batches of any structure, chosen by a policy.

    Stores the per-sample leaves of the batches (see :mod:`lightning_cl.functional.batches`) on the CPU in the dtype in
    which they come; token batches of unequal length are padded to the longest one stored. Adding and sampling cost
    O(batch), whatever the size. The memory lives in the main process: do not fill it in a worker.

    Args:
        size: Samples held at most, over all classes.
        policy: ``"reservoir"`` (every sample seen with equal probability) or ``"class_balanced"`` (an equal share for
            every class seen, a reservoir within each) or ``"greedy"`` (equal classes of the samples that came first),
            see :mod:`lightning_cl.memory.policies`.
        seed: Seed of the two generators, one that fills and one that draws.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.

    State: the samples (at most ``size``), their labels, the policy's counters, both generators; a memory that is
    loaded goes on exactly as the saved one would have.

    Raises:
        InputError: If ``size < 1`` or the policy is unknown; in :meth:`add` if batches differ in structure or
            labels are missing; in :meth:`load_state_dict` if the state is of another size or policy.

    Example:
        >>> memory = Memory(2)
        >>> memory.add((torch.zeros(5, 3), torch.arange(5)))
        >>> len(memory), memory.n_seen, list(memory.sample(2))
        (2, 5, ['0', '1'])
    """

    def __init__(
        self,
        size: int,
        policy: Literal["reservoir", "class_balanced", "greedy"] | str = "reservoir",
        seed: int = 0,
        *,
        max_per_class: int | None = None,
    ) -> None:
        if not isinstance(size, int) or size < 1:
            raise InputError(f"memory_size={size!r}", "an integer >= 1", "set memory_size=200")
        if policy not in POLICIES:
            raise InputError(f"policy={policy!r}", f"one of {', '.join(POLICIES)}", "policy='reservoir' is the default")
        self.size, self.policy_name = size, str(policy)
        self.n_seen = 0
        self._length = 0
        if max_per_class is not None and (policy != "class_balanced" or max_per_class < 1):
            raise InputError(
                f"max_per_class={max_per_class!r} with policy={policy!r}",
                "an integer >= 1 with policy 'class_balanced'",
                "leave max_per_class out",
            )
        self._policy: Policy = POLICIES[policy]() if max_per_class is None else ClassBalanced(max_per_class)
        self._rows: dict[str, TensorRows | ListRows] = {}
        self._labels: TensorRows | None = None
        self._extras: dict[str, TensorRows] = {}
        self._fills, self._draws = generator(seed, "memory", "fill"), generator(seed, "memory", "draw")

    def __len__(self) -> int:
        """Samples held now."""
        return self._length

    @property
    def needs_labels(self) -> bool:
        """Whether the policy looks at labels."""
        return self._policy.needs_labels

    @property
    def labels(self) -> Tensor | None:
        """Labels of the samples held, (len,); None if none were given."""
        return None if self._labels is None else self._labels.at(slice(0, self._length))

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        rows = [*self._rows.values(), *self._extras.values(), *([self._labels] if self._labels is not None else [])]
        return sum(row.nbytes(self._length) for row in rows)

    def add(self, batch: Any, labels: Tensor | None = None, extras: Mapping[str, Tensor] | None = None) -> None:
        """Offer every sample of a batch once.

        Args:
            batch: Any structure with per-sample leaves, all of length N.
            labels: Class of each sample, (N,); needed by ``class_balanced``.
            extras: What a method knows of each sample, (N, ...) each, such as logits or the task's number; the same
                names every time. Rows of growing width are padded with zeros.
        """
        found = leaves(batch)
        n = len(next(iter(found.values())))
        extras = dict(extras or {})
        if self._length and extras.keys() != self._extras.keys():
            raise InputError(
                f"extras {sorted(extras)} for a memory with {sorted(self._extras)}",
                "the same extras with every batch",
                "give each method a memory of its own",
            )
        if self._rows and found.keys() != self._rows.keys():
            raise InputError(
                f"a batch with leaves {sorted(found)} for a memory of {sorted(self._rows)}",
                "the same kind of batch in every task",
                "give each kind of batch its own Replay(name=...)",
            )
        if (labels is None and self.needs_labels) or (labels is not None and labels.shape != (n,)):
            raise InputError(
                f"labels {'missing' if labels is None else f'of shape {tuple(labels.shape)}'} for {n} samples",
                f"one label per sample, shape ({n},), for policy {self.policy_name!r}",
                "give label_fn=lambda batch: batch['my_label']",
            )
        plan = self._policy.offer(n, labels, self.size, self._fills)
        if labels is not None:
            self._labels = self._labels or TensorRows("labels", labels)
        stores: list[tuple[TensorRows | ListRows, Leaf]] = [
            (self._rows.setdefault(path, _rows(path, leaf)), leaf) for path, leaf in found.items()
        ]
        if labels is not None and self._labels is not None:
            stores.append((self._labels, labels))
        stores += [(self._extras.setdefault(name, TensorRows(name, extra)), extra) for name, extra in extras.items()]
        for rows, leaf in stores:
            if len(plan.source):
                rows.move(plan.source, plan.target)
            chosen = select_leaf(leaf, plan.positions)
            rows.put(plan.slots, chosen.detach() if isinstance(chosen, Tensor) else chosen, self.size)
        self.n_seen += n
        self._length = plan.length

    def sample(self, n: int) -> dict[str, Leaf]:
        """The leaves of ``n`` random samples: all different if ``n <= len(self)``, else drawn with replacement."""
        return self.at(self.draw(n))

    def draw(self, n: int) -> Tensor:
        """Slots of ``n`` random samples, (n,), by the rule of :meth:`sample`."""
        return draw(self._length, n, self._draws)

    def at(self, slots: Tensor | slice) -> dict[str, Leaf]:
        """The leaves of the samples in these slots."""
        return {path: rows.at(slots) for path, rows in self._rows.items()}

    def extras(self, slots: Tensor | slice) -> dict[str, Tensor]:
        """The extras of the samples in these slots, (n, ...) each."""
        return {name: rows.at(slots) for name, rows in self._extras.items()}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; copies, so that the memory may go on."""
        return {
            "version": 1,
            "size": self.size,
            "policy": self.policy_name,
            "policy_state": self._policy.state_dict(),
            "n_seen": self.n_seen,
            "length": self._length,
            "leaves": self.at(slice(0, self._length)),
            "labels": self.labels,
            "extras": self.extras(slice(0, self._length)),
            "fills": self._fills.get_state(),
            "draws": self._draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        given = (state["version"], state["size"], state["policy"])
        own = (1, self.size, self.policy_name)
        if given != own:
            raise InputError(
                f"the state of a memory with (version, size, policy) = {given}",
                f"{own}",
                f"use memory_size={state['size']}, policy={state['policy']!r}, or start anew",
            )
        self._policy.load_state_dict(state["policy_state"])
        self.n_seen, self._length = state["n_seen"], state["length"]
        everything = torch.arange(self._length)
        self._rows, self._labels, self._extras = {}, None, {}
        for path, leaf in state["leaves"].items():
            self._rows[path] = _rows(path, leaf)
            self._rows[path].put(everything, leaf, self.size)
        if state["labels"] is not None:
            self._labels = TensorRows("labels", state["labels"])
            self._labels.put(everything, state["labels"], self.size)
        for name, extra in state["extras"].items():
            self._extras[name] = TensorRows(name, extra)
            self._extras[name].put(everything, extra, self.size)
        self._fills.set_state(state["fills"].cpu())
        self._draws.set_state(state["draws"].cpu())


def _rows(path: str, leaf: Leaf) -> TensorRows | ListRows:
    return TensorRows(path, leaf) if isinstance(leaf, Tensor) else ListRows()


LABEL_NAMES = ("y", "label", "labels", "target", "targets")


def find_labels(batch: Any, label_fn: Callable[[Any], Tensor] | None = None) -> Tensor | None:
    """One integer label per sample, (N,), or None where there is none to be found.

    ``label_fn(batch)`` if given; else the last integer leaf (N,) named y, label(s) or target(s); else the second
    element of a tuple or list, if it is an integer (N,).
    """
    if label_fn is not None:
        return label_fn(batch)
    found = {
        path: leaf
        for path, leaf in leaves(batch).items()
        if isinstance(leaf, Tensor) and leaf.ndim == 1 and not leaf.is_floating_point() and not leaf.is_complex()
    }
    named = [leaf for path, leaf in found.items() if path.rpartition("/")[2] in LABEL_NAMES]
    return named[-1] if named else found.get("1")
