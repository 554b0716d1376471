"""Samples that are read again from the data sets they came from."""

import hashlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import Leaf, concatenate_leaves, leaves, select_leaf

#: Samples of a data set that go into its fingerprint.
SAMPLED = 16


class References:
    """The data of each task, by number, and how a batch of it is read."""

    def __init__(self) -> None:
        self._read: dict[int, Callable[[Tensor], Any]] = {}
        self.fingerprints: dict[int, str] = {}

    def bind(self, task: int, data: Any, collate_fn: Callable[[list[Any]], Any] | None = None) -> None:
        """Read the samples of a task from ``data`` from now on.

        Raises:
            InputError: If the data are not those that were bound when the memory was filled.
        """
        read = _reader(data, collate_fn)
        found = fingerprint(data, read)
        known = self.fingerprints.setdefault(task, found)
        if known != found:
            raise InputError(
                f"data of task {task} that differ from those the memory refers to",
                "the same samples in the same order",
                "bind the task's own training data, or store samples instead of references",
            )
        self._read[task] = read

    def is_bound(self, task: int) -> bool:
        """Whether the data of a task are there."""
        return task in self._read

    def require(self, task: int) -> None:
        """Raise if the data of a task are not there."""
        if task not in self._read:
            raise InputError(
                f"a memory that refers to data of task {task}, which are not there",
                f"memory.bind({task}, data) before training goes on",
                f"call replay.memory.bind({task}, dataset), or store samples",
            )

    def read(self, tasks: Tensor, indices: Tensor) -> dict[str, Leaf]:
        """The leaves of these samples.

        Raises:
            InputError: If the data of one of the tasks are not there.
        """
        parts: dict[str, Leaf] = {}
        places = []
        for task in tasks.unique().tolist():
            self.require(task)
            which = (tasks == task).nonzero().flatten()
            places.append(which)
            for path, leaf in leaves(self._read[task](indices[which])).items():
                parts[path] = concatenate_leaves(path, parts[path], leaf) if path in parts else leaf
        order = torch.cat(places).argsort() if places else torch.empty(0, dtype=torch.long)
        return {path: select_leaf(leaf, order) for path, leaf in parts.items()}

    def state_dict(self) -> dict[str, Any]:
        """The fingerprint of each task's data."""
        return {"tasks": list(self.fingerprints), "fingerprints": list(self.fingerprints.values())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned; data that are bound already are compared with it."""
        loaded = dict(zip(state["tasks"], state["fingerprints"], strict=True))
        own, self.fingerprints = self.fingerprints, loaded
        for task in list(self._read):
            if loaded.get(task, own[task]) != own[task]:
                del self._read[task]
            else:
                self.fingerprints.setdefault(task, own[task])


def fingerprint(data: Any, read: Callable[[Tensor], Any]) -> str:
    """A hash of a data set's length, its labels where it names them, and 16 samples spread over it."""
    digest = hashlib.blake2b(str(len(data)).encode(), digest_size=16)
    targets = getattr(data, "targets", None)
    if isinstance(targets, Tensor | list | tuple):
        _update(digest, torch.as_tensor(targets) if len(targets) and not isinstance(targets[0], str) else [*targets])
    if len(data):
        for path, leaf in leaves(read(torch.linspace(0, len(data) - 1, min(SAMPLED, len(data))).long())).items():
            digest.update(path.encode())
            _update(digest, leaf)
    return digest.hexdigest()


def _update(digest: Any, leaf: Leaf) -> None:
    if isinstance(leaf, Tensor):
        digest.update(str(leaf.dtype).encode())
        digest.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    else:
        digest.update(repr([each.tolist() if isinstance(each, Tensor) else each for each in leaf]).encode())


def _reader(data: Any, collate_fn: Callable[[list[Any]], Any] | None) -> Callable[[Tensor], Any]:
    if callable(getattr(data, "batch", None)):
        return data.batch
    if not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise InputError(
            f"data of type {type(data).__name__!r} for a memory of references",
            "a data set with __getitem__ and __len__",
            "store samples instead of references",
        )
    collate = collate_fn or default_collate

    def read(indices: Tensor) -> Any:
        # a data set with random transforms would draw from the global generator
        with torch.random.fork_rng(devices=[]):
            return collate([data[i] for i in indices.tolist()])

    return read
