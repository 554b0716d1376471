"""One small project for one plain process and for several that share its parameters (FSDP2)."""

from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from lightning_cl import EWC, L2SP, LwF, Replay
from lightning_cl._compat_fsdp2 import whole
from lightning_cl._sharded_tensors import is_sharded, local, whole_tensor
from tests.callbacks.ewc_examples import Net, data

METHODS = {
    "online ewc": lambda **options: EWC(20.0, variant="online", gamma=0.9, **options),
    "proximal ewc": lambda **options: EWC(20.0, apply="proximal", **options),
    "l2sp": lambda **options: L2SP(0.5, beta=0.1, head=["net.2"], **options),
    "er": lambda **options: Replay(12, mode="separate", weights=(0.5, 0.5), **options),
    "lwf": lambda **options: LwF(2.0, **options),
    "naive": lambda **options: None,
}


class Sharded(Net):
    """A project's own ``configure_model``; Lightning calls it in every fit."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        if not isinstance(self.net, FSDPModule):
            for part in (self.net[0], self.net[2], self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])


class Batches(LightningDataModule):
    """Batches of 12 over all processes, in order; those of a process are its share of each."""

    def __init__(self, task: int) -> None:
        super().__init__()
        self.dataset = data(task).dataset

    def train_dataloader(self) -> DataLoader:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        batches = [list(range(start + rank, start + 12, world)) for start in range(0, len(self.dataset), 12)]
        return DataLoader(self.dataset, batch_sampler=batches)

    def importance_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=5)


def strategy(processes: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(
        data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False
    )


def trainer(processes: int, callbacks: Any = (), *, sharded: bool | None = None, **options: Any) -> Trainer:
    """Of plain parameters where it is one process, if nothing else is said."""
    if processes > 1 if sharded is None else sharded:
        options["strategy"] = strategy(processes)
    options = {"max_epochs": 3, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu",
        devices=processes,
        callbacks=[callback for callback in callbacks if callback],
        logger=False,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def kept(callback: Any) -> dict[str, torch.Tensor]:
    """The tensors that a method holds, under the names of parameters."""
    stores = {kind: getattr(callback, kind, {}) for kind in ("importance", "anchor")}
    if hasattr(callback, "teacher"):
        stores["teacher"] = callback.teacher.tensors
    return {f"{kind}.{key}": value for kind, store in stores.items() for key, value in store.items()}


def found(module: Any, callback: Any) -> dict[str, Any]:
    """Weights and what is kept, whole; the bytes that this process holds, and whether each tensor is sharded."""
    tensors = kept(callback)
    with whole(module):
        weights = module.weights.clone()
    return {
        "weights": weights,
        "kept": {key: whole_tensor(value).clone() for key, value in tensors.items()},
        "sharded": all(map(is_sharded, tensors.values())),
        "bytes": sum(local(value).untyped_storage().nbytes() for value in tensors.values()),
    }


def learnt(name: str, processes: int, optimizer: str = "SGD", **options: Any) -> dict[str, Any]:
    """What there is after two tasks."""
    callback, module = METHODS[name](), (Net if processes == 1 else Sharded)(0.1, optimizer=optimizer)
    for task in range(2):
        trainer(processes, [callback], **options).fit(module, datamodule=Batches(task))
    return found(module, callback)


def difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of weights and of what is kept."""
    assert one["kept"].keys() == other["kept"].keys()
    pairs = [(one["weights"], other["weights"]), *((one["kept"][k], other["kept"][k]) for k in one["kept"])]
    return max(float((a - b).abs().max()) for a, b in pairs)


def all_four(processes: int, folder: str | None = None) -> dict[str, Any]:
    """What each method holds after two tasks with all of them; the second leaves a checkpoint behind each epoch."""
    callbacks, module = _four(), (Net if processes == 1 else Sharded)(0.1)
    trainer(processes, callbacks).fit(module, datamodule=Batches(0))
    _fit(module, callbacks, processes, folder)
    return {callback.name: found(module, callback) for callback in callbacks}


def resumed(checkpoint: Any, processes: int, *, sharded: bool, folder: str | None = None) -> dict[str, Any]:
    """The rest of the second task, from one of these checkpoints."""
    callbacks, module = _four(), (Sharded if sharded else Net)(0.1)
    _fit(module, callbacks, processes, folder, sharded=sharded, ckpt_path=str(checkpoint))
    return {callback.name: found(module, callback) for callback in callbacks}


def _four() -> list[Any]:
    return [METHODS[name]() for name in ("online ewc", "l2sp", "er", "lwf")]


def _fit(module: Any, callbacks: list[Any], processes: int, folder: Any, ckpt_path: Any = None, **options: Any) -> None:
    if folder is not None:
        saving = ModelCheckpoint(folder, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
        callbacks, options["enable_checkpointing"] = [*callbacks, saving], True
    made = trainer(processes, callbacks, **options)
    made.fit(module, datamodule=Batches(1), ckpt_path=ckpt_path, weights_only=True if ckpt_path else None)


class Half(Sharded):
    """Shards a part only."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard(self.net[0], mesh=self.device_mesh["data_parallel"])


class Grouped(Sharded):
    """Two layers as one unit."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        fully_shard([self.net[0], self.net[2]], mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def errors() -> list[str]:
    """What is said in two processes about what cannot work."""
    from lightning_cl.errors import InputError

    said = []

    def late() -> None:
        fitted = trainer(2, [EWC(1.0)], max_epochs=1)
        fitted.fit(module := Sharded(0.1), datamodule=Batches(0))
        fitted.callbacks[0].on_load_checkpoint(fitted, module, _finished("EWC.ewc"))

    def elsewhere() -> None:
        ewc = EWC(1.0)
        trainer(2, [ewc], max_epochs=1).fit(Sharded(0.1), datamodule=Batches(0))
        EWC(1.0).load_state_dict(ewc.state_dict())

    for attempt in (
        lambda: trainer(2, [EWC(1.0)]).fit(Half(0.1), datamodule=Batches(0)),
        lambda: trainer(2, [EWC(1.0)]).fit(Grouped(0.1), datamodule=Batches(0)),
        late,
        elsewhere,
    ):
        try:
            attempt()
            said.append("")
        except InputError as error:
            said.append(str(error))
    return said


def _finished(key: str) -> dict[str, Any]:
    progress = {"epoch_progress": {"current": {"processed": 1}}}
    return {"global_step": 2, "loops": {"fit_loop": progress}, "callbacks": {key: {"phase": "trained"}}}
