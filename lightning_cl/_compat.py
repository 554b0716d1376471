"""Every touch of Lightning that its public interface does not offer, in one room; each has a test."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from lightning_cl._ranks import rank_in_environment
from lightning_cl.errors import InputError

SHARDED = ("FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy")


def strategy_name(trainer: Any) -> str:
    """Class name of the trainer's strategy."""
    return type(trainer.strategy).__name__


def launched_by_others() -> bool:
    """Whether this process was started as one of several (torchrun, srun, or Lightning's launcher)."""
    return int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1) > 1


def process_rank() -> int:
    """This process's place among those that were started together, known before they have met."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank()
    return rank_in_environment()


def join_processes(trainer: Any, module: Any) -> None:
    """Start the other processes of a trainer, if nobody has, and meet them; does nothing the second time.

    Args:
        trainer: The Trainer.
        module: What it will train; a strategy that shards it must know.

    Raises:
        InputError: For a strategy that forks or spawns.
    """
    launcher = trainer.strategy.launcher
    if launcher is not None and type(launcher).__name__ != "_SubprocessScriptLauncher":
        raise InputError(
            f"strategy {strategy_name(trainer)!r} started by {type(launcher).__name__.lstrip('_')}",
            "processes that run the program itself, because a copy loses what callbacks learn",
            "set strategy='ddp', or start it by torchrun or srun",
        )
    if torch.distributed.is_initialized():
        return
    if launcher is not None:
        launcher.launch(lambda: None, trainer=trainer)
    trainer.strategy.connect(module)
    trainer.strategy.setup_environment()


def leave_signals_alone(trainer: Any) -> None:
    """Keep Lightning from handling SIGTERM and Slurm's: it broadcasts inside a handler, and requeues by itself."""
    trainer._signal_connector.register_signal_handlers = lambda: None


def ended_normally(trainer: Any) -> bool:
    """True when training reached its own end: epochs, steps, a compute budget, or ``EarlyStopping``.

    ``on_train_end`` fires on any stop request too (a signal, a time limit, ``trainer.should_stop = True``), mid-task.
    """
    if getattr(trainer, "received_sigterm", False) or trainer.interrupted:
        return False
    if not trainer.should_stop:
        return True
    if any(getattr(callback, "budget_spent", False) for callback in trainer.callbacks):
        return True
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if steps not in (None, -1) and trainer.global_step >= steps:
        return True
    if epochs not in (None, -1) and trainer.fit_loop.epoch_progress.current.processed >= epochs:
        return True
    # with a minimum, a fit goes on after it has been told to stop
    epochs = 0 if trainer.min_epochs or trainer.min_steps else trainer.current_epoch
    return any(_has_stopped(callback, epochs) for callback in trainer.early_stopping_callbacks)


def _has_stopped(early_stopping: Any, epochs: int) -> bool:
    """Whether it is ``EarlyStopping`` that has stopped a fit of so many epochs, the last included; of 0, ever."""
    reason = getattr(getattr(early_stopping, "stopping_reason", None), "name", "NOT_STOPPED")
    epoch = getattr(early_stopping, "stopped_epoch", 0)  # may be epoch 0
    # used again, it keeps what it said of an earlier fit, but begins to wait anew with each better value
    if (not epoch and reason == "NOT_STOPPED") or epoch < epochs - 1:
        return False
    if not epochs:
        return True
    waits = reason in ("NOT_STOPPED", "PATIENCE_EXHAUSTED")
    return not waits or getattr(early_stopping, "wait_count", 0) >= getattr(early_stopping, "patience", 0)


def training_was_finished(trainer: Any, checkpoint: dict[str, Any]) -> bool:
    """True when ``checkpoint`` holds a training that has nothing left to do, so that ``fit`` will skip it silently."""
    steps = trainer.max_steps
    if steps not in (None, -1) and checkpoint.get("global_step", 0) >= steps:
        return True
    progress = checkpoint.get("loops", {}).get("fit_loop", {}).get("epoch_progress", {}).get("current", {})
    epochs = trainer.max_epochs
    return epochs not in (None, -1) and progress.get("processed", 0) >= epochs


def batches_trained(trainer: Any) -> int | None:
    """Training batches of an epoch; of an epoch without a known end those that have passed; None if nobody knows."""
    batches = trainer.num_training_batches
    if batches != float("inf"):
        return int(batches)
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready or None


def hook_owner(trainer: Any, module: Any, hook: str) -> Any:
    """The object, DataModule or module, on which Lightning will call a data hook."""
    return trainer._data_connector._datahook_selector.get_instance(hook) if trainer is not None else module


def train_source(trainer: Any) -> Any:
    """What Lightning asks for the training loader, by its method ``dataloader()``; from ``setup`` on."""
    return trainer.fit_loop._data_source


def move_batch(trainer: Any, module: Any, batch: Any, *, before: bool = True) -> Any:
    """Send one batch through the user's transfer hooks, but not through replay's patch of them.

    ``before=False`` leaves out ``on_before_batch_transfer``, for a batch that has passed it.
    """
    attached = trainer is not None and getattr(module, "_trainer", None) is not None
    device = module.device if hasattr(module, "device") else next(module.parameters()).device
    if not attached:
        from lightning.fabric.utilities import move_data_to_device

        return move_data_to_device(batch, device)

    def call(hook: str, *args: Any) -> Any:
        return unpatched(getattr(hook_owner(trainer, module, hook), hook))(*args)

    # 'bf16-true' and '64-true' train on inputs of another dtype
    batch = trainer.precision_plugin.convert_input(batch)
    if before:
        batch = call("on_before_batch_transfer", batch, 0)
    moved = call("transfer_batch_to_device", batch, device, 0)
    # an object whose .to() works in place returns None
    return call("on_after_batch_transfer", batch if moved is None else moved, 0)


def unpatched(method: Callable[..., Any]) -> Callable[..., Any]:
    """The user's own method behind any of our instance patches (but not behind the user's own decorators)."""
    while "original" in getattr(method, "__dict__", {}) and not inspect.isfunction(method):
        method = method.original  # type: ignore[attr-defined]
    return method


def training_step_of(module: Any) -> Callable[[Any, int], Any]:
    """``(batch, batch_idx) -> output`` of the user's own ``training_step``, which gets batch_idx if it takes it."""
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

    step = unpatched(module.training_step)
    if is_param_in_hook_signature(step, "batch_idx", min_args=2):
        return step
    return lambda batch, batch_idx: step(batch)


def optimizers_of(trainer: Any, module: Any) -> tuple[list[Any], list[Any]]:
    """Optimizers and learning-rate schedulers: the Trainer's, or new ones of ``configure_optimizers()`` without one."""
    if trainer is not None:
        return list(trainer.optimizers), [config.scheduler for config in trainer.lr_scheduler_configs]
    from lightning.pytorch.core.optimizer import _configure_optimizers

    optimizers, schedulers, _ = _configure_optimizers(module.configure_optimizers())
    return list(optimizers), [s["scheduler"] if isinstance(s, dict) else s for s in schedulers]


@contextlib.contextmanager
def replaced(instance: Any, attributes: dict[str, Any]) -> Iterator[None]:
    """Other attributes, methods for instance, on one instance inside the block."""
    missing = object()
    before = {name: vars(instance).get(name, missing) for name in attributes}
    # nn.Module's own __setattr__ would sort them into its registries
    vars(instance).update(attributes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is missing:
                vars(instance).pop(name, None)
            else:
                vars(instance)[name] = value


@contextlib.contextmanager
def muted_logging(module: Any) -> Iterator[None]:
    """Inside the block ``self.log``, ``self.log_dict`` and the loggers of a LightningModule do nothing."""
    silent = {name: lambda *args, **kwargs: None for name in ("log", "log_dict") if hasattr(module, name)}
    trainer = getattr(module, "_trainer", None)
    loggers = list(getattr(trainer, "loggers", []))
    with replaced(module, silent):
        if loggers:
            from lightning.pytorch.loggers.logger import DummyLogger

            # modules also write to self.logger.experiment by themselves
            trainer.loggers = [DummyLogger()]  # type: ignore[union-attr]
        try:
            yield
        finally:
            if loggers:
                trainer.loggers = loggers  # type: ignore[union-attr]


@contextlib.contextmanager
def evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside the block; every submodule's own training flag is restored after it."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global generators start from ``seed`` inside the block and are put back after it."""
    from lightning.pytorch import seed_everything

    before, variables = rng_state(), {k: os.environ.get(k) for k in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")}
    seed_everything(seed % 2**32, verbose=False)
    try:
        yield
    finally:
        set_rng_state(before)
        for key, value in variables.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def rng_state() -> dict[str, Any]:
    """State of torch's, CUDA's, numpy's and Python's global generators, as tensors and numbers only."""
    import random

    import numpy as np

    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": list(torch.cuda.get_rng_state_all()) if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys, "int64")), int(position), int(has_gauss), float(cached)],
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore what :func:`rng_state` returned."""
    import random

    import numpy as np

    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype("uint32"), position, has_gauss, cached))
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))


@contextlib.contextmanager
def kept_randomness() -> Iterator[None]:
    """After the block the global generators go on as if it had not been."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)
