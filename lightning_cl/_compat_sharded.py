"""Lightning's strategies that split parameters over processes: which are refused, and what is repaired in FSDP2's."""

import os
from typing import Any

import torch
from torch import nn

from lightning_cl import _compat
from lightning_cl._sharded_tensors import is_sharded
from lightning_cl.errors import InputError

FSDP2 = "ModelParallelStrategy"


def refuse_sharded(trainer: Any, who: str, *, supported: bool = False) -> bool:
    """Whether the trainer's strategy shards parameters; one that ``who`` does not support is refused.

    Raises:
        InputError: With the strategy's name.
    """
    strategy = _compat.strategy_name(trainer)
    if strategy not in _compat.SHARDED:
        return False
    if not supported:
        raise InputError(
            f"strategy {strategy!r} with {who}",
            "a strategy that keeps whole parameters",
            "use strategy='auto' or 'ddp'",
        )
    if strategy != FSDP2:
        raise InputError(
            f"strategy {strategy!r} with {who}",
            "whole parameters, or FSDP2",
            "use strategy='ddp', or ModelParallelStrategy (docs/cluster.md, Sharded models)",
        )
    split = trainer.strategy.device_mesh["tensor_parallel"].size()
    if split > 1:
        raise InputError(
            f"ModelParallelStrategy with tensor_parallel_size={split} and {who}",
            "processes that share data, not layers",
            f"set data_parallel_size={trainer.world_size} tensor_parallel_size=1",
        )
    return True


def writes_folders(trainer: Any) -> bool:
    """Whether a checkpoint of the strategy is a folder with a file for each process."""
    return _compat.strategy_name(trainer) == FSDP2 and trainer.strategy._save_distributed_checkpoint


def repair_loading(trainer: Any) -> None:
    """Let a sharded fit go on with optimizers that keep nothing (SGD without momentum), at which Lightning fails."""
    strategy = trainer.strategy
    if _compat.strategy_name(trainer) != FSDP2 or "load_checkpoint" in vars(strategy):
        return
    load = strategy.load_checkpoint

    def load_checkpoint(path: Any, weights_only: bool | None = None) -> Any:
        if not os.path.isfile(path):
            return load(path, weights_only=weights_only)
        try:  # only to look; what else is in the file is for Lightning to read, or to refuse
            saved = torch.load(path, mmap=True, map_location="cpu", weights_only=True).get("optimizer_states", [])
        except Exception:
            return load(path, weights_only=weights_only)
        if not saved or any(state["state"] for state in saved):
            return load(path, weights_only=weights_only)
        optimizers, strategy.optimizers = strategy.optimizers, []
        try:
            return load(path, weights_only=weights_only)
        finally:
            strategy.optimizers = optimizers
            for optimizer, state in zip(optimizers, saved, strict=True):
                for group, values in zip(optimizer.param_groups, state["param_groups"], strict=True):
                    group.update({key: value for key, value in values.items() if key != "params"})

    strategy.load_checkpoint = load_checkpoint


def refuse_unshared(module: nn.Module) -> None:
    """Refuse trainable parameters that are not sharded although others are: nobody averages their gradients.

    Raises:
        InputError: With their names.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    lone = [name for name, p in named if not is_sharded(p)]
    if lone and torch.distributed.get_world_size() > 1:
        raise InputError(
            f"parameters {', '.join(lone[:3])} that configure_model has not sharded",
            "every trainable parameter sharded, because nobody averages the gradients of the others",
            "call fully_shard on the modules that hold them",
        )
