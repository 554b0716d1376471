"""What callbacks with a memory share: where training batches pass, what is drawn beside them, how the memory fills."""

import inspect
from collections import deque
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from lightning_cl import _compat
from lightning_cl.callbacks._drawn import Drawn, like, own_size, passing
from lightning_cl.callbacks._hub import TrainingStepHub
from lightning_cl.callbacks._input_errors import input_errors
from lightning_cl.callbacks._memory_filling import MemoryFilling
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size as size_of
from lightning_cl.functional.batches import clone_batch, leaves, rebuild, select
from lightning_cl.memory import find_labels

HOOK = "on_after_batch_transfer"


class MemoryMethod(MemoryFilling):
    """Base of callbacks that train with a memory; it has no loss of its own.

    At every training step ``n_draws`` batches are drawn from the memory, independently of each other, in the structure
    of the current batch, and sent through the user's own ``on_after_batch_transfer``; ``self.drawn`` holds them while
    the step runs (it is empty while the memory is). Subclasses add their loss by ``_listener``, which is attached to
    the shared hub of ``training_step`` (see :class:`~lightning_cl.callbacks._hub.Listener`), or override ``_incoming``
    to change the batch itself.

    What a method stores beside each sample (logits, features) is returned by ``_extras`` when the memory is filled at
    the end of a task, and put into ``self.step_extras`` by the listener when it is filled step by step.

    In several processes every one holds the same memory: filled step by step, it is offered the batches of all of them
    in the order of ranks, and each process draws its own samples.

    Args:
        memory_size: Samples kept in all, >= 0 (nothing is stored); None with ``memory_bytes``.
        policy, max_per_class: See :class:`~lightning_cl.memory.Memory`.
        batch_size: Memory samples per draw (and process); as many as the current batch has by default.
        fill: ``"consolidate"`` offers every training sample once at the end of a task, unshuffled and not augmented;
            ``"step"`` offers the current batch as it is trained on, after each step of the first epoch.
        label_fn: ``batch -> labels (N,)``, where :func:`~lightning_cl.memory.find_labels` finds none.
        seed: Seed of what is stored and what is drawn.
        name, consolidate, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.
        features_fn, losses_fn: ``(module, batch) -> (N, D)`` or ``(N,)``, for policies that look at features or losses;
            see :class:`~lightning_cl.callbacks._sample_facts.SampleFacts` for what is done without.
        **memory: ``policy_options``, ``memory_bytes``, ``max_age``, ``id_fn``, ``storage``, ``path``, ``keep_states``,
            ``stores``, ``deletion_log``: see :class:`~lightning_cl.memory.Memory`. With ``deletion_log``, batches of
            a :class:`~lightning_cl.streams.TaskLoader` that have no ids are stored with those of their data.

    State: the memory (at most ``memory_size`` samples), its generators, and the number of samples replayed.
    """

    #: among the hub's listeners, lower is called earlier
    order = 0
    #: independent draws of memory samples at each step
    n_draws = 1
    #: whether every batch must have labels, whatever the policy
    needs_labels = False

    def __init__(self, memory_size: int | None = None, *, batch_size: int | None = None, **filling: Any) -> None:
        super().__init__(memory_size, **filling)
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(f"batch_size={batch_size!r}", "an integer >= 1, or None", "leave it out")
        self.batch_size = batch_size
        self.replayed = 0
        self.drawn: list[Drawn] = []
        self._hub: TrainingStepHub | None = None
        self._armed = self._seen_a_batch = False
        self._pending: deque[Any] = deque()

    @property
    def needs_boundary(self) -> bool:
        """Whether the memory is filled at the end of a task."""
        return self.fill == "consolidate"

    @property
    def boundary_hint(self) -> str:
        """The arguments with which it needs no boundary; empty if there are none."""
        return "set fill='step'" if "fill" in inspect.signature(type(self)).parameters else ""

    # what a method defines ------------------------------------------------------------------------------------------

    def _listener(self) -> Any:
        """The hub's listener, if the method changes the loss; None if it does not."""
        return None

    def _around(self) -> Any:
        """What makes a context around the user's own step on the current batch, see the hub; None if nothing does."""
        return None

    @property
    def _mixes(self) -> bool:
        """Whether the batch is copied into a larger one before anybody else sees it."""
        return False

    def _draws(self) -> int:
        """How many draws the next step needs."""
        return self.n_draws

    def _choose(self, n: int, rank: int, world: int) -> list[Tensor]:
        """Slots of the next draws, ``n`` in this process each; all processes call it alike."""
        # every process draws for all, so that their generators stay alike, and takes its share
        return [self.memory.draw(n * world)[rank::world] for _ in range(self._draws())]

    def _incoming(self, batch: Any, drawn: list[Drawn], hook: Callable[[Any], Any]) -> Any:
        """The batch that Lightning gets; ``hook`` is the user's own ``on_after_batch_transfer``."""
        current = hook(batch)
        self.drawn = [Drawn(hook(each.batch), each.extras, each.slots) for each in drawn]
        return current

    # where batches pass ---------------------------------------------------------------------------------------------

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Stand where the training batches pass."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._forget_the_fit()
        self._trainer = trainer
        listener = self._listener()
        if listener is not None:
            self._hub = TrainingStepHub.attach(
                pl_module, listener, name=type(self).__name__, order=self.order, around=self._around()
            )
        if getattr(trainer.datamodule, "replay", None) is not self and self._patch is None:
            owner = _compat.hook_owner(trainer, pl_module, HOOK)
            self._patch = InstancePatch(owner, HOOK, self._after_transfer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave module and DataModule as they were."""
        if self._patch is not None and not self._patch.remove():
            # another function stands on top and will go on calling this one
            self._patch.function = self._patch.original
        if self._hub is not None:
            self._hub.detach(self._listener())
        self._patch = self._hub = self._trainer = None
        self._forget_the_fit()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave module and DataModule as they were."""
        self.teardown(trainer, pl_module, "fit")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is a training batch."""
        self._armed = True
        if self.first_epoch is None:
            self.first_epoch = trainer.current_epoch
        if self.consolidate_when == "auto" and self.fill == "consolidate" and not self.off:
            self._rehearse(trainer, pl_module)
        self.memory.check_place()  # not in setup: there a checkpoint has not been loaded yet
        if self.memory.stores_references:
            for task in getattr(trainer.datamodule, "seen_tasks", []):
                if task.id < self.n_tasks and not self.memory.is_bound(task.id):
                    self.memory.bind(task.id, task.train)
            self.memory.require_bound()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is a training batch."""
        self._armed = True
        # of a step that on_train_batch_start() has called off, and with it the rest of its epoch
        self._pending.clear()

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """The next batch that is transferred is not (another callback's importance pass)."""
        self._armed = False

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Check that the batch came by, and offer it to the memory."""
        if batch is None:  # a collate function that had nothing to give
            return
        if not self._seen_a_batch:
            owner = type(self._patch.owner if self._patch else trainer.datamodule).__name__
            raise InputError(
                f"a training batch that did not pass {type(self).__name__} at {owner}.{HOOK}",
                "every training batch to pass",
                "if something replaces that hook after setup, wrap the data: ReplayDataModule(datamodule, replay)",
            )
        if self._hub is not None:
            self._hub.require_fired()
        if self._pending:
            pending = self._pending.popleft()
            # a batch that is trained on several times is stored once, after the last
            if (batch_idx + 1) % getattr(trainer.train_dataloader, "updates_per_batch", 1) == 0:
                self._offer_step(pl_module, pending, batch_idx)
        self.drawn, self.step_extras = [], {}
        self._armed = True

    def _after_transfer(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        """The user's hook, on the current batch and on what is drawn beside it."""
        assert self._patch is not None
        original = self._patch.original
        if not self._armed or batch is None or not self._trainer.training:
            return original(batch, *args, **kwargs)
        self._armed = False
        drawn = self._take(batch)
        with passing(batch):
            return self._incoming(batch, drawn, lambda of: original(of, *args, **kwargs))

    def _take(self, batch: Any) -> list[Drawn]:
        """Memory samples in the structure of ``batch``, on its devices; an empty list when there is none to replay."""
        with input_errors():
            found = leaves(batch)
        labelled = self.needs_labels or self.memory.needs_labels
        if not self._seen_a_batch and labelled and find_labels(batch, self.label_fn) is None:
            by = f"policy={self.memory.policy_name!r}" if self.memory.needs_labels else type(self).__name__
            raise InputError(
                f"a batch with leaves {sorted(found)}, none of which is a label for {by}",
                "an integer leaf (N,) named y, label or target, or the second element of a tuple",
                "give label_fn=lambda batch: batch['my_label']",
            )
        trainer = self._trainer
        if not self._seen_a_batch and self._names and trainer is not None and not self.holds_memory(trainer):
            self._named(trainer.train_dataloader, 0, batch)
        self._seen_a_batch = True
        n = own_size(batch)
        drawn = [] if len(self.memory) == 0 or self.holds_memory(trainer) else self._draw(batch, found, n)
        if self.fill == "step" and trainer is not None and trainer.current_epoch == self.first_epoch:
            own = batch if n == size_of(batch) else select(batch, slice(0, n))
            # a copy: other callbacks may rewrite the batch in place before the step is over
            self._pending.append(own if self._mixes and drawn else clone_batch(own))
        return drawn

    def _draw(self, batch: Any, found: dict[str, Any], n: int) -> list[Drawn]:
        """The draws of a step, in the structure of ``batch``, whose leaves are ``found`` and of which ``n`` samples are
        the loader's; all are read at once.
        """
        trainer = self._trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        chosen = self._choose(self.batch_size or n, rank, world)
        if not chosen:
            return []
        whole = self._stored(batch, found, torch.cat(chosen) if len(chosen) > 1 else chosen[0])
        self.replayed += whole.slots.shape[0]
        if len(chosen) == 1:
            return [whole]
        ends = list(accumulate(slots.shape[0] for slots in chosen))
        return [whole.part(slice(start, end)) for start, end in zip([0, *ends], ends, strict=False)]

    @staticmethod
    def holds_memory(trainer: Any) -> bool:
        """Whether the training data themselves hold the memory's samples (a stage of balanced fine-tuning)."""
        return bool(getattr(getattr(trainer, "datamodule", None), "holds_memory", False))

    def _stored(self, batch: Any, found: dict[str, Any], slots: Tensor) -> Drawn:
        """The samples in ``slots``, as a batch like ``batch``, whose leaves are ``found``."""
        stored = self.memory.at(slots)
        if stored.keys() != found.keys():
            raise InputError(
                f"a batch with leaves {sorted(found)} for a memory of {sorted(stored)}",
                "the same kind of batch in every task",
                f"give each kind of batch its own {type(self).__name__}(name=...)",
            )
        device = next((leaf.device for leaf in found.values() if isinstance(leaf, Tensor)), torch.device("cpu"))
        extras = {name: extra.to(device) for name, extra in self.memory.extras(slots).items()}
        drawn = rebuild(batch, {path: like(leaf, found[path]) for path, leaf in stored.items()})
        if self.memory.stores_references and self._patch is not None:
            # what is stored has passed this hook when it was stored, what is read again has not
            name = "on_before_batch_transfer"
            drawn = getattr(_compat.hook_owner(self._trainer, self._patch.owner, name), name)(drawn, 0)
        return Drawn(drawn, extras, slots)

    def _forget_the_fit(self) -> None:
        self._armed = self._seen_a_batch = False
        self.drawn, self.step_extras = [], {}
        self._pending.clear()
