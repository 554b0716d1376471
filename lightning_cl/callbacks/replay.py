"""Experience replay."""

from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._hub import TrainingStepHub, loss_of, with_loss
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.batches import concatenate, leaves, rebuild
from lightning_cl.functional.seeding import derive_seed
from lightning_cl.memory import Memory, find_labels

HOOK = "on_after_batch_transfer"


class Replay(MethodCallback):
    r"""Trains on stored samples of earlier tasks beside the current ones: experience replay, ER.

    Sources: Chaudhry et al. 2019, arXiv:1902.10486; van de Ven et al. 2022, doi:10.1038/s42256-022-00568-3.

    ``mode="mixed"`` puts memory samples behind the current ones in one batch, of the structure that the user's
    ``training_step`` knows; every sample weighs the same. ``mode="separate"`` runs ``training_step`` a second time on a
    batch of memory samples, silently, and trains on :math:`w_c L_{current} + w_m L_{memory}`; by default with van de
    Ven's weights :math:`1/k` and :math:`1 - 1/k`, where k counts the tasks so far, the current one included.

    Works on batches of tensors, tuples, mappings, named tuples, dataclasses and objects (see
    :mod:`lightning_cl.functional.batches`) and on modules that are not ours. While the memory is empty nothing is
    changed: the first task is bit-identical to training without the callback. A transform in
    ``on_after_batch_transfer`` sees the memory samples too, anew each time; one in ``on_before_batch_transfer`` is
    applied once, when a sample is stored.

    State: the memory (at most ``memory_size`` samples), its generators, and the number of samples replayed.

    Not supported: ``fill="step"`` in several processes; in separate mode, manual optimization, and other callbacks that
    rewrite the batch in place (they see only the current one).

    Args:
        memory_size: Samples kept in all, >= 1.
        policy: What is kept: ``"reservoir"`` or ``"class_balanced"``, see :class:`~lightning_cl.memory.Memory`.
        max_per_class: For ``class_balanced``: no class holds more, even while there is room.
        mode: ``"mixed"`` or ``"separate"``.
        batch_size: Memory samples per step (and process); as many as the current batch has by default.
        weights: In separate mode: ``"tasks"``, or the pair (current, memory).
        fill: ``"consolidate"`` offers every training sample once at the end of a task, unshuffled and not augmented;
            ``"step"`` offers the current batch as it is trained on, after each step of the first epoch.
        label_fn: ``batch -> labels (N,)`` for ``class_balanced``, where :func:`~lightning_cl.memory.find_labels` finds
            none.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these; in ``setup`` and on the first batch for what cannot work.
    """

    def __init__(
        self,
        memory_size: int,
        *,
        policy: Literal["reservoir", "class_balanced"] = "reservoir",
        max_per_class: int | None = None,
        mode: Literal["mixed", "separate"] = "mixed",
        batch_size: int | None = None,
        weights: Literal["tasks"] | Sequence[float] = "tasks",
        fill: Literal["consolidate", "step"] = "consolidate",
        label_fn: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
        name: str = "replay",
        consolidate: Literal["auto", "manual"] = "auto",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, state_path=state_path)
        if mode not in ("mixed", "separate"):
            raise InputError(f"mode={mode!r}", "'mixed' or 'separate'", "leave it out for 'mixed'")
        if fill not in ("consolidate", "step"):
            raise InputError(f"fill={fill!r}", "'consolidate' or 'step'", "leave it out for 'consolidate'")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch_size={batch_size!r}", "an integer >= 1, or None", "leave it out")
        if weights != "tasks" and not _two_numbers(weights):
            expected = "'tasks' or two finite numbers >= 0 (current, memory)"
            raise InputError(f"weights={weights!r}", expected, "try weights=(0.5, 0.5)")
        if weights != "tasks" and mode == "mixed":
            raise InputError(f"weights={weights!r} with mode='mixed'", "no weights", "set mode='separate'")
        self.mode, self.batch_size, self.weights, self.fill = mode, batch_size, weights, fill
        self.label_fn = label_fn
        self.memory = Memory(memory_size, policy, derive_seed(seed, name), max_per_class=max_per_class)
        self.replayed = 0
        self._trainer: Any = None
        self._patch: InstancePatch | None = None
        self._hub: TrainingStepHub | None = None
        self._armed = self._seen_a_batch = False
        self._drawn: Any = None
        self._pending: deque[Any] = deque()

    @property
    def nbytes(self) -> int:
        """Bytes of the samples held."""
        return self.memory.nbytes

    @property
    def loss_weights(self) -> tuple[float, float]:
        """Weights of the current and the memory loss in separate mode, now."""
        if not isinstance(self.weights, str):
            current, memory = self.weights
            return float(current), float(memory)
        share = 1 / (self.n_tasks + 1)
        return share, 1 - share

    def mix(self, batch: Any) -> Any:
        """The batch with memory samples behind its own; the batch itself while the memory is empty.

        Called by the patched hook, or by :class:`~lightning_cl.ReplayDataModule`.
        """
        drawn = self._take(batch)
        return batch if drawn is None else concatenate(batch, drawn)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand where the training batches pass."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if self.fill == "step" and trainer.world_size > 1:
            raise InputError(
                f"fill='step' in {trainer.world_size} processes",
                "one process: each would fill its own memory, and only the first one's is saved",
                "use fill='consolidate'",
            )
        self._forget_the_fit()
        self._trainer = trainer
        if self.mode == "separate":
            self._hub = TrainingStepHub.attach(pl_module, self._two_losses, name=type(self).__name__)
        if getattr(trainer.datamodule, "replay", None) is not self and self._patch is None:
            owner = _compat.hook_owner(trainer, pl_module, HOOK)
            self._patch = InstancePatch(owner, HOOK, self._after_transfer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        if self._patch is not None and not self._patch.remove():
            # another function stands on top and will go on calling this one
            self._patch.function = self._patch.original
        if self._hub is not None:
            self._hub.detach(self._two_losses)
        self._patch = self._hub = self._trainer = None
        self._forget_the_fit()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave module and DataModule as they were."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is a training batch."""
        self._armed = True

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is a training batch."""
        self._armed = True

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is not (another callback's importance pass)."""
        self._armed = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the batch came by, and offer it to the memory."""
        if not self._seen_a_batch:
            owner = type(self._patch.owner if self._patch else trainer.datamodule).__name__
            raise InputError(
                f"a training batch that did not pass Replay at {owner}.{HOOK}",
                "every training batch to pass",
                "if something replaces that hook after setup, wrap the data: ReplayDataModule(datamodule, replay)",
            )
        if self._hub is not None:
            self._hub.require_fired()
        if self._pending:
            self._offer(self._pending.popleft())
        self._armed = True

    def _after_transfer(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The user's hook, on the mixed batch or on both batches."""
        assert self._patch is not None
        hook = self._patch.original
        if not self._armed or batch is None or not self._trainer.training:
            return hook(batch, *args, **kwargs)
        self._armed = False
        if self.mode == "mixed":
            return hook(self.mix(batch), *args, **kwargs)
        drawn = self._take(batch)
        current = hook(batch, *args, **kwargs)
        self._drawn = None if drawn is None else hook(drawn, *args, **kwargs)
        return current

    def _take(self, batch: Any) -> Any:
        """Memory samples in the structure of ``batch``, on its devices; None when there is nothing to replay."""
        trainer = self._trainer
        try:
            found = leaves(batch)
        except ValueError as error:
            given, _, rest = str(error).partition("; expected ")
            raise InputError(given, *rest.split(". HINT: ", 1)) from error
        if not self._seen_a_batch and self.memory.needs_labels and find_labels(batch, self.label_fn) is None:
            raise InputError(
                f"a batch with leaves {sorted(found)}, none of which is a label for policy='class_balanced'",
                "an integer leaf (N,) named y, label or target, or the second element of a tuple",
                "give label_fn=lambda batch: batch['my_label']",
            )
        self._seen_a_batch = True
        if self.fill == "step" and trainer is not None and trainer.current_epoch == 0:
            # a copy: other callbacks may rewrite the batch in place before the step is over
            copies = {path: leaf.clone() if isinstance(leaf, Tensor) else [*leaf] for path, leaf in found.items()}
            self._pending.append(rebuild(batch, copies))
        if len(self.memory) == 0 or (self.mode == "separate" and self.loss_weights[1] == 0):
            return None
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        n = self.batch_size or size_of(batch)
        # every process draws for all, so that their generators stay alike, and takes its share
        drawn = self.memory.at(self.memory.draw(n * world)[rank::world])
        if drawn.keys() != found.keys():
            raise InputError(
                f"a batch with leaves {sorted(found)} for a memory of {sorted(drawn)}",
                "the same kind of batch in every task",
                "give each kind of batch its own Replay(name=...)",
            )
        self.replayed += n
        return rebuild(batch, {path: _like(leaf, found[path]) for path, leaf in drawn.items()})

    def consolidate(self, trainer: Any, pl_module: Any, dataloader: Any = None) -> None:
        """End the task; with ``fill="consolidate"`` offer its training samples to the memory, once."""
        # a memory that was filled step by step needs no loader, and not every project has one that can be re-made
        super().consolidate(trainer, pl_module, () if self.fill == "step" else dataloader)

    def _two_losses(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        current = loss_of(output)
        if self._drawn is None or current is None:
            return output
        memory = call(self._drawn)
        if memory is None:
            return output
        weights = self.loss_weights
        return with_loss(output, weights[0] * current + weights[1] * memory)

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        before = None
        if self._patch is not None:
            before = _compat.hook_owner(trainer, module, "on_before_batch_transfer").on_before_batch_transfer
        # a DataLoader draws a seed from the global generator, and data sets draw more
        with torch.random.fork_rng(devices=[]):
            for batch in loader:
                self._offer(batch if before is None else before(batch, 0))

    def _offer(self, batch: Any) -> None:
        self.memory.add(batch, find_labels(batch, self.label_fn))

    def _forget_the_fit(self) -> None:
        self._armed = self._seen_a_batch = False
        self._drawn = None
        self._pending.clear()

    def _state(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "replayed": self.replayed}

    def _load(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.replayed = state["replayed"]


def _two_numbers(weights: Any) -> bool:
    try:
        return len(weights) == 2 and all(0 <= weight < float("inf") for weight in weights)
    except TypeError:
        return False


def _like(leaf: Any, other: Any) -> Any:
    """A memory leaf on the device of the batch's, in its floating dtype (half-precision inputs)."""
    if not isinstance(leaf, Tensor) or not isinstance(other, Tensor):
        return leaf
    both_floating = leaf.is_floating_point() and other.is_floating_point()
    return leaf.to(device=other.device, dtype=other.dtype if both_floating else leaf.dtype)
