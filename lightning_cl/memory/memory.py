"""Samples of the past, kept within a fixed number."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, leaves
from lightning_cl.functional.sampling import draw
from lightning_cl.functional.seeding import generator
from lightning_cl.memory._age import AgeQueue
from lightning_cl.memory._checks import check_ids, check_known, check_structure
from lightning_cl.memory._deleted import DeletedIds
from lightning_cl.memory._held import EXTRA, IDS, LABELS, LEAF
from lightning_cl.memory._ids import column_of_ids
from lightning_cl.memory._labels import find_ids
from lightning_cl.memory._leaving import Leaving
from lightning_cl.memory._rows import bytes_of
from lightning_cl.memory._settings import check_places, check_size, make_policy, parse_bytes
from lightning_cl.memory._table import BORN
from lightning_cl.memory.policies import Offered


class Memory(Leaving):
    """A fixed number of samples from a stream of batches of any structure, chosen by a policy.

    Stores the per-sample leaves of the batches (see :mod:`lightning_cl.functional.batches`) on the CPU in the dtype in
    which they come; token batches of unequal length are padded to the longest one stored. Adding and sampling cost
    O(batch), whatever the size. The memory lives in the main process: do not fill it in a worker.

    Args:
        size: Samples held at most, over all classes, >= 0 (nothing is stored); None with ``memory_bytes``.
        policy: ``"reservoir"``, ``"class_balanced"``, ``"task_balanced"``, ``"ring"``, ``"herding"``, ``"gdumb"``,
            ``"loss_aware"`` or ``"time_weighted"``, see :mod:`lightning_cl.memory.policies`.
        seed: Seed of the two generators, one that fills and one that draws.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.
        policy_options: Arguments of the policy, for instance ``{"time_constant": 5000}``.
        memory_bytes: The size in bytes (``"200MB"``, ``"1GiB"``, or a number) instead: as many samples as fit, counted
            with the first batch's bytes per sample, what is stored beside it included.
        max_age: Samples leave once so many have been offered since (themselves included).
        id_fn: ``batch -> ids``, integers (N,) or a list of strings, by which samples can be deleted; by default an
            integer leaf (N,) named id, sample_id or index, if there is one.
        storage: ``"ram"``, or ``"disk"`` for memory-mapped files in ``path``. A state then says where samples are, and
            what it refers to is not overwritten until ``keep_states`` newer states have been taken.
        path: Folder of the files, used by this memory alone; one where another memory's samples are is refused.
        keep_states: How many states stay loadable with ``storage="disk"``.
        stores: ``"samples"``, or ``"references"``: only (task, index) is stored, and samples are read again from the
            data given to :meth:`bind`, as they are then.
        deletion_log: File to which deletions are added at once; ``path/deleted.txt`` with ``storage="disk"``.

    State: the samples (at most ``size``), their labels, the policy's counters, both generators, hashes of deleted ids;
    a memory that is loaded goes on exactly as the saved one would have.

    Raises:
        InputError: For values outside these; in :meth:`add` if batches differ in structure, or what the policy looks
            at is missing, or the folder is another memory's; in :meth:`load_state_dict` if the state is of another size
            or policy, or of another folder.

    Example:
        >>> memory = Memory(2)
        >>> memory.add((torch.zeros(5, 3), torch.arange(5)))
        >>> len(memory), memory.n_seen, list(memory.sample(2))
        (2, 5, ['0', '1'])
    """

    def __init__(
        self,
        size: int | None = None,
        policy: Literal["reservoir", "class_balanced"] | str = "reservoir",
        seed: int = 0,
        *,
        max_per_class: int | None = None,
        policy_options: Mapping[str, Any] | None = None,
        memory_bytes: int | str | None = None,
        max_age: int | None = None,
        id_fn: Callable[[Any], Leaf] | None = None,
        storage: Literal["ram", "disk"] = "ram",
        path: str | Path | None = None,
        keep_states: int = 4,
        stores: Literal["samples", "references"] = "samples",
        deletion_log: str | Path | None = None,
    ) -> None:
        check_size(size, memory_bytes)
        check_places(storage, path, stores, max_age, keep_states, deletion_log)
        #: 0 until the first batch says how many samples ``memory_bytes`` are
        self.size: int = size or 0
        self.policy_name, self.max_age, self.id_fn = str(policy), max_age, id_fn
        self.memory_bytes = None if memory_bytes is None else parse_bytes(memory_bytes)
        self.n_seen = 0
        folder = None if path is None else Path(path)
        log = folder / "deleted.txt" if deletion_log is None and folder is not None else deletion_log
        self.deleted = DeletedIds(seed, None if log is None else Path(log))
        super().__init__(folder, keep_states, references=stores == "references")
        self._policy = make_policy(str(policy), max_per_class, policy_options)
        self._ages = AgeQueue()
        self._paths: list[str] | None = None
        self._fills, self._draws = generator(seed, "memory", "fill"), generator(seed, "memory", "draw")
        if self.size:
            self._policy.open(self.size, self._table.index, max_age)

    @property
    def needs(self) -> frozenset[str]:
        """What the policy looks at: labels, tasks, features, losses."""
        return self._policy.needs

    @property
    def needs_labels(self) -> bool:
        """Whether the policy looks at labels."""
        return "labels" in self.needs

    def add(
        self,
        batch: Any,
        labels: Tensor | None = None,
        extras: Mapping[str, Tensor] | None = None,
        *,
        tasks: int | Tensor | None = None,
        features: Tensor | None = None,
        losses: Tensor | None = None,
        ids: Leaf | None = None,
        indices: Tensor | None = None,
    ) -> None:
        """Offer every sample of a batch once, those excepted that have been deleted by their id.

        Args:
            batch: Any structure with per-sample leaves, all of length N.
            labels: Class of each sample, (N,); needed by policies that balance classes.
            extras: What a method knows of each sample, (N, ...) each, such as logits; the same names every time. Rows
                of growing width are padded with zeros.
            tasks: Number of the task, one for all or (N,); needed by ``task_balanced`` and for references.
            features: (N, D), needed by ``herding``, which wants all samples of a class in one batch.
            losses: (N,), needed by ``loss_aware``.
            ids: What names each sample; by default what ``id_fn`` or the batch says.
            indices: For references: position of each sample in the data of its task, (N,).
        """
        found, extras = leaves(batch), dict(extras or {})
        first = next(iter(found.values()))
        n = first.shape[0] if isinstance(first, Tensor) else len(first)  # a tensor's len() takes microseconds
        needs = self.needs if self._references is None else self.needs | {"tasks"}
        if isinstance(tasks, int):
            tasks = torch.full((n,), tasks) if "tasks" in needs else None
        given = {"labels": labels, "tasks": tasks, "features": features, "losses": losses}
        known = {name: None if value is None else value.detach().cpu() for name, value in given.items()}
        if ids is None:
            ids = find_ids(found) if self.id_fn is None else self.id_fn(batch)
        ids = None if ids is None else column_of_ids(ids)
        check_structure(found, self._paths, extras, self._table.names(EXTRA) if len(self) else None)
        check_known(n, needs, self.policy_name, known)
        check_ids(
            n, ids, None if not (len(self) or len(self.deleted)) else IDS in self._table.columns or bool(self.deleted)
        )
        columns: dict[str, Leaf] = {EXTRA + name: extra for name, extra in extras.items()}
        columns |= {} if known["labels"] is None else {LABELS: known["labels"]}
        columns |= {} if ids is None else {IDS: ids}
        if self._references is None:
            columns |= {LEAF + path: leaf for path, leaf in found.items()}
        else:
            columns |= {LEAF + name: value for name, value in self._referred(known["tasks"], indices, n).items()}
        self._table.check(columns)
        if self.size == 0:
            if self.memory_bytes is None:
                self.n_seen += n
                return
            self._measure(columns, n)
        self._paths = list(found)
        if self.max_age is None and not self.deleted:
            self._offer(None, n, columns, known)
            return
        everyone = torch.arange(n)
        if self.deleted and ids is not None:
            everyone = everyone[~self.deleted.among(ids)]
        for part in everyone.split(self.max_age or n) if len(everyone) else ():
            self._offer(part, len(part), columns, known)

    def _referred(self, tasks: Tensor | None, indices: Tensor | None, n: int) -> dict[str, Tensor]:
        if tasks is None or indices is None or len(indices) != n:
            raise InputError(
                f"a batch of {n} samples without the position of each for a memory of references",
                f"tasks, and indices of shape ({n},)",
                "use fill='consolidate', or store samples",
            )
        return {"task": tasks, "index": indices.cpu()}

    def _offer(self, part: Tensor | None, n: int, columns: dict[str, Leaf], known: dict[str, Tensor | None]) -> None:
        """Offer the n samples at these positions, no more than may grow old at once; None for all."""
        born = None
        if part is not None:
            known = {name: None if value is None else value[part] for name, value in known.items()}
            if self.max_age is not None:
                self._expire(self.n_seen + n - self.max_age)
                born = torch.zeros(int(part[-1]) + 1, dtype=torch.long)
                born[part] = torch.arange(self.n_seen, self.n_seen + n)
                columns = {**columns, BORN: born}
        plan = self._policy.offer(Offered(n, self.n_seen, **known), self._fills)
        positions = plan.positions if part is None else part[plan.positions]
        self._table.write(plan.rows, positions, columns, self.size)
        if born is not None:
            self._ages.push(born[positions], plan.rows)
        self.n_seen += n

    def _measure(self, columns: dict[str, Leaf], n: int) -> None:
        assert self.memory_bytes is not None
        total = sum(v.nbytes if isinstance(v, Tensor) else sum(map(bytes_of, v)) for v in columns.values())
        size = self.memory_bytes * n // max(1, total)
        if size < 1:
            raise InputError(
                f"memory_bytes={self.memory_bytes} for samples of {total // n} bytes", "room for one", "take more"
            )
        self.size = size
        self._policy.open(size, self._table.index, self.max_age)

    def sample(self, n: int) -> dict[str, Leaf]:
        """The leaves of ``n`` random samples: all different if ``n <= len(self)``, else drawn with replacement."""
        return self.at(self.draw(n))

    def draw(self, n: int) -> Tensor:
        """Slots of ``n`` random samples, (n,), by the rule of :meth:`sample`."""
        return draw(len(self), n, self._draws)

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; copies, so that the memory may go on."""
        return {
            "version": 1,
            "size": self.size,
            "memory_bytes": self.memory_bytes,
            "policy": self.policy_name,
            "policy_state": self._policy.state_dict() if self.size else {},
            "n_seen": self.n_seen,
            "length": len(self),
            "paths": self._paths,
            "table": self._table.state_dict(),
            "deleted": self.deleted.state_dict(),
            "references": None if self._references is None else self._references.state_dict(),
            "fills": self._fills.get_state(),
            "draws": self._draws.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned; samples whose deletion is in the log only are removed."""
        size = self.size if self.memory_bytes is None else state["size"]
        given = (state["version"], state["size"], state["policy"])
        own = (1, size, self.policy_name)
        if given != own or state["memory_bytes"] != self.memory_bytes:
            raise InputError(
                f"the state of a memory with (version, size, policy) = {given}",
                f"{own}",
                f"use memory_size={state['size']}, policy={state['policy']!r}, or start anew",
            )
        if (state["references"] is None) != (self._references is None) or ("index" in state["table"]) != (
            self._table.folder is not None
        ):
            raise InputError(
                "the state of a memory with another storage= or stores=",
                "the settings it was made with",
                "change them back, or start anew",
            )
        self.size, self.n_seen, self._paths = size, state["n_seen"], state["paths"]
        gone = self._table.load_state_dict(state["table"], size)
        self.deleted.load_state_dict(state["deleted"])
        if self._references is not None:
            self._references.load_state_dict(state["references"])
        if size:
            self._policy.open(size, self._table.index, self.max_age)
            self._policy.load_state_dict(state["policy_state"])
        self._ages = AgeQueue()
        if self.max_age is not None and BORN in self._table.columns:
            rows = self._table.index.rows(slice(None)).clone()
            self._ages.push(self._table.columns[BORN].at(rows), rows)  # type: ignore[arg-type]
        rows = self._table.index.rows(gone).clone()
        self._leave(rows, expired=False)
        ids = self.ids
        if len(self.deleted) and ids is not None and len(ids):
            self._leave(self._table.index.rows(self.deleted.among(ids).nonzero().flatten()).clone(), expired=False)
        self._fills.set_state(state["fills"].cpu())
        self._draws.set_state(state["draws"].cpu())
