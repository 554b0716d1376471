"""A second stage of training behind the fit, on as many samples of each old class as of each new one."""

from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cl.callbacks._memory_method import MemoryMethod
from lightning_cl.callbacks._method import MethodCallback
from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import derive_seed


class BalancedFineTuning(Callback):
    """Fine-tunes on the memory of another callback and equally many samples of the task just learnt.

    The stage ``balanced_fine_tuning`` stands between ``fit`` and ``consolidate``, so that importances, teachers and
    memories are taken afterwards. Of each class of the task as many samples are drawn as the memory holds on average of
    each class of each earlier task; on the first task there is nothing to balance, and nothing is done. It trains by
    the module's own loss (Castro et al. 2018, ECCV; also in Hou et al. 2019 and Douillard et al. 2020), with a new
    optimizer whose learning rates are scaled. Callbacks of methods rest, nothing is mixed into batches; one that
    declares ``fine_tunes = True`` goes on acting (EEIL distils). Works with every method that has a memory::

        lightning-cl method=[er,balanced_fine_tuning]

    A stage that is killed goes on from its own checkpoint, bit for bit. State: none; the samples are a function of
    (seed, task).

    Not supported: Trainers of your own (it is a stage of ``run_sequence`` and ``learn_task``); a memory filled step by
    step, which holds the task's own samples already; ``training_data`` other than ``"current"``.

    Args:
        epochs: Passes over the balanced data.
        lr_scale: Learning rates, schedules included, are multiplied by it.
        tune: ``"all"`` parameters, or the ``"head"`` of a :class:`~lightning_cl.FineTuningModule` only.
        memory: Name of the callback whose memory is used, if there are several.

    Raises:
        InputError: For values outside these; in ``setup`` for what cannot work.
    """

    #: its stage stands at the end of a task
    needs_boundary = True

    def __init__(
        self,
        epochs: int = 10,
        *,
        lr_scale: float = 0.1,
        tune: Literal["all", "head"] = "all",
        memory: str | None = None,
    ) -> None:
        if not isinstance(epochs, int) or epochs < 1:
            raise InputError(f"epochs={epochs!r}", "an integer >= 1", "leave it out for 10")
        if isinstance(lr_scale, bool) or not isinstance(lr_scale, int | float) or not 0 < lr_scale < float("inf"):
            raise InputError(f"lr_scale={lr_scale!r}", "a finite number > 0", "leave it out for 0.1")
        if tune not in ("all", "head"):
            raise InputError(f"tune={tune!r}", "'all' or 'head'", "leave it out for 'all'")
        self.epochs, self.lr_scale, self.tune, self.memory = epochs, lr_scale, tune, memory
        self._in_a_sequence = False

    def stages(self) -> list[Any]:
        """The stage behind the fit."""
        from lightning_cl.sequence.state import Stage

        self._in_a_sequence = True
        return [Stage("balanced_fine_tuning", self._run, after="fit")]

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work, before the first task."""
        if stage != "fit":
            return
        if not self._in_a_sequence:
            raise InputError(
                "BalancedFineTuning in a Trainer of your own",
                "run_sequence or learn_task, which run its stage behind the fit",
                "run_sequence(module, stream, [Replay(200), BalancedFineTuning()])",
            )
        self._with_memory(trainer.callbacks)
        if self.tune == "head" and not (hasattr(pl_module, "backbone") and hasattr(pl_module, "head")):
            raise InputError(
                f"tune='head' on {type(pl_module).__name__}", "a module with backbone and head", "use tune='all'"
            )

    def _with_memory(self, callbacks: Any) -> MemoryMethod:
        found = [c for c in callbacks if isinstance(c, MemoryMethod) and self.memory in (None, c.name)]
        if len(found) != 1:
            names = [c.name for c in callbacks if isinstance(c, MemoryMethod)]
            raise InputError(
                f"BalancedFineTuning(memory={self.memory!r}) with the memories {names}",
                "one callback with a memory",
                "method=[er,balanced_fine_tuning], or choose one by memory=NAME",
            )
        if found[0].fill != "consolidate":
            raise InputError(
                f"BalancedFineTuning on a memory with fill={found[0].fill!r}",
                "a memory of earlier tasks only",
                "set fill='consolidate'",
            )
        return found[0]

    def _run(self, state: Any, task: Any) -> None:
        from lightning_cl.sequence.training import train

        settings = state.settings
        if settings.training_data != "current":
            raise InputError(
                f"BalancedFineTuning with training_data={settings.training_data!r}",
                "training on the current task",
                "leave one of the two out",
            )
        memory = self._with_memory(state.callbacks).memory
        if len(memory) == 0:
            return
        callbacks = [c for c in state.fit_callbacks() if c is not self and _acts(c, self.tune)]
        train(
            state,
            task,
            self._data(state, task, memory),
            "balanced_fine_tuning",
            callbacks,
            [_Tuning(self.lr_scale, self.tune)],
            max_epochs=self.epochs,
            max_steps=-1,
        )

    def _data(self, state: Any, task: Any, memory: Any) -> Any:
        from lightning_cl.streams.balanced import balanced_data
        from lightning_cl.streams.datamodule import TaskDataModule

        settings = state.settings
        # classes that come again in a later task count once for each task
        earlier = sum(len(before.class_indices) for before in state.stream[: task.id])
        per_class = max(1, round(len(memory) / max(1, earlier)))
        seed = derive_seed(settings.seed, "balanced fine-tuning", task.id)
        data = balanced_data(memory.at(slice(0, len(memory))), task.train, per_class, seed)
        datamodule = TaskDataModule(
            replace(task, train=data),
            batch_size=state.batch_size,
            eval_batch_size=settings.eval_batch_size,
            num_workers=settings.num_workers,
            seed=seed,
            drop_last=settings.drop_last and len(data) >= state.batch_size,
        )
        datamodule.seen_tasks = state.stream[: task.id + 1]  # type: ignore[attr-defined]
        datamodule.holds_memory = True  # type: ignore[attr-defined]
        return datamodule


def _acts(callback: Any, tune: str) -> bool:
    """Whether a callback takes part in the stage: what freezes would meet a backbone that is frozen already."""
    if isinstance(callback, MethodCallback):
        return bool(getattr(callback, "fine_tunes", False))
    return tune == "all" or not hasattr(callback, "as_fitted")


class _Tuning(Callback):
    """Scales learning rates, and holds the backbone where only the head is tuned."""

    RATES = ("lr", "initial_lr", "max_lr", "min_lr")

    def __init__(self, lr_scale: float, tune: str) -> None:
        self.lr_scale, self.tune = lr_scale, tune
        self._held: list[nn.Parameter] = []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Hold the backbone's parameters, before a strategy looks at what is trained."""
        if stage == "fit" and self.tune == "head":
            self._held = [p for p in pl_module.backbone.parameters() if p.requires_grad]
            for parameter in self._held:
                parameter.requires_grad_(False)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Scale the rates, before a checkpoint in the middle of the stage restores its own."""
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group.update({name: group[name] * self.lr_scale for name in self.RATES if name in group})
        for config in trainer.lr_scheduler_configs:
            for name in ("base_lrs", "max_lrs", "min_lrs", "_last_lr"):
                rates = getattr(config.scheduler, name, None)
                if isinstance(rates, list):
                    setattr(config.scheduler, name, [rate * self.lr_scale for rate in rates])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A backbone that is held keeps its statistics."""
        if self.tune == "head":
            pl_module.backbone.eval()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was."""
        for parameter in self._held:
            parameter.requires_grad_(True)
        self._held = []

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was."""
        self.teardown(trainer, pl_module, "fit")
