"""Replay for people who would rather see it in their data than in a patched hook."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_cl.errors import InputError

if TYPE_CHECKING:
    from lightning_cl.callbacks.replay import Replay

#: What Lightning asks a DataModule for, having looked whether it is overridden.
HOOKS = (
    "prepare_data",
    "setup",
    "teardown",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
    "state_dict",
    "load_state_dict",
    "on_exception",
)


class ReplayDataModule(LightningDataModule):
    """Wraps a DataModule so that its training batches come mixed with ``replay``'s memory.

    The mixing is done in the main process, on the CPU, before any batch hook; the :class:`~lightning_cl.Replay` must be
    among the Trainer's callbacks too: it fills the memory, keeps its state, and recognises that its batches are mixed
    here. Everything else, hooks and other attributes included, is the wrapped DataModule's own.

    With a train loader that has no length Lightning fetches one batch ahead; a resume in mid-epoch then draws one batch
    of memory samples more than an uninterrupted run.

    Args:
        datamodule: Any LightningDataModule of ``lightning.pytorch``.
        replay: The callback, in ``mode="mixed"``.

    Raises:
        InputError: If ``replay`` is in separate mode, or ``datamodule`` is not one of ``lightning.pytorch``.

    Example::

        replay = Replay(500)
        trainer = Trainer(callbacks=[replay])
        trainer.fit(model, datamodule=ReplayDataModule(datamodule, replay))
    """

    def __init__(self, datamodule: LightningDataModule, replay: "Replay") -> None:
        if not isinstance(datamodule, LightningDataModule):
            raise InputError(
                f"datamodule of type {type(datamodule).__module__}.{type(datamodule).__name__}",
                "a lightning.pytorch.LightningDataModule",
                "pass the Replay callback alone: it works with any DataModule and with bare loaders",
            )
        if replay.mode != "mixed":
            raise InputError(f"Replay(mode={replay.mode!r})", "mode='mixed'", "pass the Replay callback alone")
        # before the parent's constructor, which sets attributes that are the wrapped DataModule's
        self.__dict__.update(datamodule=datamodule, replay=replay)
        super().__init__()
        # what the parents' constructors have just set: settings, and saved hyperparameters
        for name in set(self.__dict__) & set(datamodule.__dict__) | {n for n in datamodule.__dict__ if "hparams" in n}:
            self.__dict__[name] = datamodule.__dict__[name]
        # on the instance and only where overridden: Lightning asks which hooks are
        for hook in HOOKS:
            if is_overridden(hook, datamodule):
                setattr(self, hook, getattr(datamodule, hook))

    @property
    def trainer(self) -> Any:
        """The wrapped DataModule's trainer."""
        return self.datamodule.trainer

    @trainer.setter
    def trainer(self, trainer: Any) -> None:
        self.datamodule.trainer = trainer

    def __getattr__(self, name: str) -> Any:
        # not there yet in a copy or after unpickling
        if "datamodule" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.datamodule, name)

    def train_dataloader(self) -> CombinedLoader:
        """The wrapped DataModule's training batches, each with memory samples behind its own."""
        loader = self.datamodule.train_dataloader()
        if isinstance(loader, CombinedLoader):
            return _MixingLoader(loader.iterables, loader._mode, self.replay)
        return _MixingLoader(loader, "max_size_cycle", self.replay)


class _MixingLoader(CombinedLoader):
    """A CombinedLoader, because Lightning then treats the user's loaders within as it always does (distributed sampler,
    epochs, state)."""

    def __init__(self, iterables: Any, mode: Any, replay: "Replay") -> None:
        super().__init__(iterables, mode)
        self._replay = replay

    def __next__(self) -> Any:
        batch, batch_idx, dataloader_idx = super().__next__()
        return self._replay.mix(batch), batch_idx, dataloader_idx
