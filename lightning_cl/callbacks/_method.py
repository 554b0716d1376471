"""What every method's callback shares: counting tasks, and consolidating each of them exactly once."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback

from lightning_cl import _compat
from lightning_cl._compat_exit import settle_if_connected
from lightning_cl._compat_fsdp2 import has_shards, reshard
from lightning_cl._compat_sharded import refuse_sharded, refuse_unshared, repair_loading
from lightning_cl._sharded_tensors import gathered, holds_shards, is_first
from lightning_cl.callbacks._gather import same_buffers
from lightning_cl.callbacks._plain_loader import plain_loader
from lightning_cl.callbacks._state_path import checked_path, load_from, usable
from lightning_cl.errors import InputError
from lightning_cl.files import load_state, save_state

log = logging.getLogger(__name__)


class MethodCallback(Callback):
    """Base of the callbacks that act over a sequence of tasks; each normally ended ``fit`` is one task.

    Consolidation is a phase that runs once per task: ``learning -> trained -> consolidated``. It starts at a normal
    end of training, never after a stop request, and is entered again from ``on_fit_start`` when ``fit(ckpt_path=...)``
    resumes a training that had finished without it.

    Subclasses implement ``_consolidate(trainer, module, loader)``, ``_state()`` and ``_load(state)``.

    Args:
        name: Distinguishes several callbacks of one class on a Trainer.
        consolidate: ``"auto"`` at the end of each ``fit``; ``"manual"`` when you call :meth:`consolidate`.
        select: Weights to consolidate with: ``"last"``, or ``"best"`` of the Trainer's ``ModelCheckpoint`` (loaded for
            the consolidation only, but for methods that change the weights by it).
        state_path: File that is written atomically at each consolidation and read at the start, so that the next task
            can be another process; not written with ``fast_dev_run``.
    """

    #: whether consolidation reads the task's data
    needs_data = True
    #: whether it works on parameters that FSDP2 shards
    supports_sharding = False
    #: whether consolidation leaves the module with other weights, which are then those that stay
    changes_weights = False
    #: whether every task has to bring a class that is new
    needs_new_classes = False

    def __init__(
        self,
        *,
        name: str,
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        if consolidate not in ("auto", "manual"):
            raise InputError(f"consolidate={consolidate!r}", "'auto' or 'manual'", "leave it out for 'auto'")
        if select not in ("last", "best"):
            raise InputError(f"select={select!r}", "'last' or 'best'", "leave it out for 'last'")
        self.name = name
        self.consolidate_when = consolidate
        self.select = select
        self.state_path = checked_path(state_path)
        self.n_tasks = 0
        self.phase = "learning"
        self._resumed_a_finished_fit = False

    @property
    def state_key(self) -> str:
        """Class and name; no tunable is in it, so that a changed lambda does not drop the state silently."""
        return f"{type(self).__name__}.{self.name}"

    @property
    def nbytes(self) -> int:
        """Bytes of state kept between tasks."""
        return 0

    @property
    def needs_boundary(self) -> bool:
        """Whether it has to be told where a task ends; then it is refused on a stream that has no boundaries."""
        return True

    def refuse_tasks(self, tasks: Sequence[Any]) -> None:
        """Refuse a sequence that could not be learnt to its end; :func:`~lightning_cl.run_sequence` asks before it.

        Args:
            tasks: What will be trained on, one after the other.
        """
        known: set[int] = set()
        for task in tasks if self.needs_new_classes else ():
            if known.issuperset(task.class_indices):
                raise InputError(
                    f"{task.name!r} without new classes for {type(self).__name__}",
                    "new classes in every task (class_incremental, task_incremental)",
                    "set stream.scenario=class_incremental; where the same classes come again take er, derpp or ewc",
                )
            known.update(task.class_indices)

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, and read ``state_path``."""
        if stage != "fit":
            return
        settle_if_connected()
        if refuse_sharded(trainer, type(self).__name__, supported=self.supports_sharding):
            if self.select == "best":
                raise InputError("select='best' with sharded parameters", "select='last'", "leave it out")
            repair_loading(trainer)
        if self.state_path is not None and self.n_tasks == 0 and usable(self.state_path).is_file():
            load_from(self, self.state_path)

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note whether the checkpoint's training has anything left to do."""
        self._resumed_a_finished_fit = _compat.training_was_finished(trainer, checkpoint)
        if self._resumed_a_finished_fit and trainer.strategy.restore_checkpoint_after_setup:
            self._refuse_late(checkpoint)

    def _refuse_late(self, checkpoint: dict[str, Any]) -> None:
        """Sharded strategies restore a checkpoint when no hook comes any more in which to consolidate."""
        self._resumed_a_finished_fit = False
        phase = checkpoint.get("callbacks", {}).get(self.state_key, {}).get("phase")
        if phase != "consolidated" and self.consolidate_when == "auto":
            raise InputError(
                f"a checkpoint of a finished training, not consolidated by {self.state_key}, with sharded parameters",
                "one with training left, or a consolidated one",
                "set consolidate='manual', and call consolidate(trainer, module)",
            )

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Consolidate now if a finished training is being resumed that had not been consolidated."""
        if has_shards(pl_module):
            refuse_unshared(pl_module)
        if not self._resumed_a_finished_fit:
            self.phase = "learning"
        elif self.phase != "consolidated" and self.consolidate_when == "auto":
            trainer.fit_loop.setup_data()
            self.consolidate(trainer, pl_module)
        self._resumed_a_finished_fit = False

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Consolidate, if training came to its own end."""
        if not _compat.ended_normally(trainer):
            log.warning("%s: training was stopped; the task is not consolidated", self.state_key)
            return
        self.phase = "trained"
        if self.consolidate_when == "auto":
            self.consolidate(trainer, pl_module)

    def consolidate(self, trainer: Any, pl_module: Any, dataloader: Any = None) -> None:
        """Take from the task just learned what this method needs later. Does nothing the second time.

        Args:
            trainer: The Trainer of the fit, or None for a model that was not trained here (then give ``dataloader``).
            pl_module: The module, with the weights that will be used.
            dataloader: The task's data; by default ``importance_dataloader()`` of the DataModule or module if there is
                one, else the training data in order, without drop_last.
        """
        if self.phase == "consolidated" and trainer is not None:
            return
        if dataloader is None and self.needs_data:
            dataloader = plain_loader(trainer, pl_module)
        reshard(pl_module)
        same_buffers(pl_module)
        last, keeps = self._load_best(trainer, pl_module), False
        try:
            self._consolidate(trainer, pl_module, dataloader)
            keeps = self.changes_weights
        finally:
            if last is not None and not keeps:
                pl_module.load_state_dict(last)
        self.n_tasks += 1
        self.phase = "consolidated"
        # a trial of the code is no task that the next process may count on
        if self.state_path is not None and not getattr(trainer, "fast_dev_run", False):
            state = self.state_dict()  # in every process: some gather
            if is_first():
                save_state(self.state_path, state)

    def _load_best(self, trainer: Any, module: Any) -> dict[str, Any] | None:
        """Load the best checkpoint's weights; returns the last ones to be put back."""
        if self.select == "last" or trainer is None:
            return None
        path = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if not path:
            raise InputError("select='best' without a best checkpoint", "a ModelCheckpoint(monitor=...)", "add one")
        last = {key: value.detach().clone() for key, value in module.state_dict().items()}
        module.load_state_dict(load_state(path)["state_dict"])
        return last

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        raise NotImplementedError

    def _state(self) -> dict[str, Any]:
        return {}

    def _load(self, state: dict[str, Any]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only; with sharded parameters in the first process only, and called in all of them."""
        state = {"version": 1, "n_tasks": self.n_tasks, "phase": self.phase, **self._state()}
        if holds_shards(state) and not is_first():
            state["version"] = "of the first process"
        return gathered(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        if state_dict.get("version") != 1:
            raise InputError(
                f"state version {state_dict.get('version')!r} of {self.state_key}", "version 1", "update lightning_cl"
            )
        self.n_tasks, self.phase = state_dict["n_tasks"], state_dict["phase"]
        self._load(state_dict)
