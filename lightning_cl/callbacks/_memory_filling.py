"""What callbacks with a memory share: how the memory fills."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, cast

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._gather import from_first, gather_batch, gather_leaves, world_size
from lightning_cl.callbacks._memory_options import MemoryOptions, StorageOptions
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.callbacks._plain_loader import has_length, plain_loader, refuse_several
from lightning_cl.callbacks._sample_facts import SampleFacts
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.batches import concatenate_leaves, leaves, rebuild
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory import Memory, find_labels
from lightning_cl.memory._labels import find_ids


class MemoryFilling(MethodCallback):
    """Base of :class:`~lightning_cl.callbacks._memory_method.MemoryMethod`, whose arguments it takes; fills the memory
    at the end of each task, or with each batch that has been trained on.
    """

    def __init__(
        self,
        memory_size: int | None = None,
        *,
        policy: str = "reservoir",
        max_per_class: int | None = None,
        fill: Literal["consolidate", "step"] = "consolidate",
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str,
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
        **memory: Unpack[MemoryOptions],
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, state_path=state_path)
        if fill not in ("consolidate", "step"):
            raise InputError(f"fill={fill!r}", "'consolidate' or 'step'", "leave it out for 'consolidate'")
        self.fill, self.label_fn = fill, label_fn
        for key, given in {"label_fn": label_fn, **memory}.items():
            if key.endswith("_fn") and not (given is None or callable(given)):
                raise InputError(f"{key}={given!r}", "a function, or None", "leave it out")
        features_fn, losses_fn = memory.pop("features_fn", None), memory.pop("losses_fn", None)
        options = cast("StorageOptions", memory)
        # ids cost memory: only where somebody wants to delete by them
        self._names = options.get("deletion_log") is not None and options.get("id_fn") is None
        self.memory = Memory(memory_size, policy, derive_seed(seed, name), max_per_class=max_per_class, **options)
        self._facts = SampleFacts(self.memory.needs, features_fn, losses_fn)
        if fill == "step" and ("features" in self.memory.needs or self.memory.stores_references):
            what = "stores='references'" if self.memory.stores_references else f"policy={policy!r}"
            raise InputError(f"fill='step' with {what}", "fill='consolidate'", "set fill='consolidate'")
        self.replayed = 0
        #: of the present task, by the Trainer's count; None as long as it is not trained on
        self.first_epoch: int | None = None
        self.step_extras: dict[str, Tensor] = {}
        self._trainer: Any = None
        self._patch: InstancePatch | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        return self.memory.nbytes

    @property
    def off(self) -> bool:
        """Whether the memory can hold nothing; what needs one is then left out, so that training is naive."""
        return self.memory.size == 0 and self.memory.memory_bytes is None

    def belongs_to(self, run_dir: Path) -> None:
        """Tell the memory where its states are kept."""
        self.memory.belongs_to(run_dir, self.state_key)

    def _extras(self, module: Any, batch: Any) -> dict[str, Tensor]:
        """What is stored beside each sample of a batch at the end of a task, (N, ...) each."""
        return {}

    def consolidate(self, trainer: Any, pl_module: Any, dataloader: Any = None) -> None:
        """End the task; with ``fill="consolidate"`` offer its training samples to the memory, once."""
        # a memory that was filled step by step needs no loader, and not every project has one that can be re-made
        super().consolidate(trainer, pl_module, () if self.fill == "step" else dataloader)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self.first_epoch = None
        before = None
        if self._patch is not None:
            before = _compat.hook_owner(trainer, module, "on_before_batch_transfer").on_before_batch_transfer
        whole: list[tuple[Any, dict[str, Tensor], dict[str, Any]]] = []
        start = 0
        # a DataLoader draws a seed from the global generator, and data sets draw more
        with _compat.kept_randomness():
            for number, raw in enumerate(loader):
                if raw is None:
                    continue
                known: dict[str, Any] = self._known(trainer, module, raw) | self._named(loader, number, raw)
                if self.memory.stores_references:
                    known["indices"] = self._refer(loader, raw, start)
                    start += size_of(raw)
                batch = raw if before is None else before(raw, 0)
                offer = batch, self._extras(module, batch), known
                if "features" in self.memory.needs:
                    whole.append(offer)  # all of a class has to be offered at once
                else:
                    self._offer(offer[0], offer[1], **offer[2])
        if whole:
            batch, extras, known = _joined(whole)
            self._offer(batch, extras, **known)

    def _rehearse(self, trainer: Any, module: Any) -> None:
        """What filling the memory would refuse is refused before the training, not behind it."""
        if not (self._facts.needs or self.memory.stores_references):
            refuse_several(trainer, module)
            return
        loader = plain_loader(trainer, module)
        if not has_length(loader):
            return
        with _compat.kept_randomness():
            raw = next((batch for batch in loader if batch is not None), None)
        if raw is None:
            return
        self._known(trainer, module, raw)
        if self.memory.stores_references:
            self._refer(loader, raw, 0)

    def _known(self, trainer: Any, module: Any, raw: Any) -> dict[str, Any]:
        """What the memory's policy wants to know of a batch as it comes from the loader."""
        known: dict[str, Any] = {}
        if "tasks" in self.memory.needs or self.memory.stores_references:
            known["tasks"] = torch.full((size_of(raw),), self.n_tasks)
        if self._facts.needs:
            moved = _compat.move_batch(trainer, module, raw)
            known |= from_first(self._facts(module, moved), _device(trainer, module))
        return known

    def _named(self, loader: Any, number: int, batch: Any) -> dict[str, Tensor]:
        """The ids of the samples of a loader's batch, where they are asked for and are not in the batch."""
        if not self._names or find_ids(leaves(batch)) is not None:
            return {}
        ids = loader.sample_ids(number) if hasattr(loader, "sample_ids") else None
        if ids is None:
            raise InputError(
                "deletion_log with samples that have no ids",
                "an integer leaf (N,) named id, sample_id or index, or data of lightning_cl.streams",
                "give id_fn=lambda batch: batch['my_id'], or leave deletion_log out",
            )
        return {"ids": ids}

    def _refer(self, loader: Any, batch: Any, start: int) -> Tensor:
        """Positions of a batch's samples in the data of its loader, which is seen to serve them in order."""
        indices = torch.arange(start, start + size_of(batch))
        if start == 0:
            data = getattr(loader, "dataset", None)
            self.memory.bind(self.n_tasks, data, getattr(loader, "collate_fn", None))
            read, found = self.memory.read(self.n_tasks, indices), leaves(batch)
            if read.keys() != found.keys() or not all(_equal(read[path], found[path]) for path in found):
                raise InputError(
                    f"a loader of {type(data).__name__} that does not serve its data in order, or not twice alike",
                    "plain data: unshuffled, complete, without random augmentation",
                    "define importance_dataloader(), or store samples instead of references",
                )
        return indices

    def _offer_step(self, module: Any, batch: Any, number: int) -> None:
        """Offer a batch that has been trained on, the loader's with this number: in every process those of all."""
        trainer = self._trainer
        known: dict[str, Any] = {**self._named(trainer.train_dataloader, number, batch)} if self._names else {}
        if "tasks" in self.memory.needs:
            known["tasks"] = torch.full((size_of(batch),), self.n_tasks)
        if self._facts.needs:
            # behind the user's own hook, as the training step sees it
            moved = self._patch.original(batch, 0) if self._patch else _compat.move_batch(trainer, module, batch)
            known |= self._facts(module, moved)
        extras = self.step_extras
        if world_size() > 1:
            device = _device(trainer, module)
            batch = gather_batch(batch, device)
            extras, known = gather_leaves(dict(extras), device), gather_leaves(known, device)  # type: ignore[assignment]
        self._offer(batch, extras, **known)

    def _offer(self, batch: Any, extras: dict[str, Tensor], **known: Any) -> None:
        self.memory.add(batch, find_labels(batch, self.label_fn), extras, **known)

    def _state(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "replayed": self.replayed, "first_epoch": self.first_epoch}

    def _load(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.replayed, self.first_epoch = state["replayed"], state.get("first_epoch", 0)


def _joined(offers: list[tuple[Any, dict[str, Tensor], dict[str, Any]]]) -> tuple[Any, dict[str, Tensor], Any]:
    """Several offers as one."""
    batches, extras, known = zip(*offers, strict=True)
    batch = batches[0]
    if len(batches) > 1:
        everything = [leaves(each) for each in batches]
        joined: dict[str, Any] = {}
        for path, leaf in everything[0].items():
            if isinstance(leaf, Tensor) and all(each[path].shape[1:] == leaf.shape[1:] for each in everything):  # type: ignore[union-attr]
                joined[path] = torch.cat([each[path] for each in everything])  # type: ignore[misc]
            else:
                joined[path] = leaf
                for each in everything[1:]:
                    joined[path] = concatenate_leaves(path, joined[path], each[path])
        batch = rebuild(batch, joined)
    return batch, _cat(extras), _cat(known)


def _cat(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b.to(a.device)) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def _device(trainer: Any, module: Any) -> torch.device:
    return trainer.strategy.root_device if trainer is not None else next(module.parameters()).device
