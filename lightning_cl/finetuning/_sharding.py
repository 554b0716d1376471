"""How a backbone and a head are split over processes (FSDP2)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from lightning_cl import _compat
from lightning_cl._compat_fsdp2 import has_shards
from lightning_cl._compat_sharded import FSDP2
from lightning_cl.errors import InputError


def shard(module: Any) -> None:
    """Shard ``module.backbone`` and ``module.head``, if the strategy of the module's Trainer does that to models.

    A unit, which is whole only while it computes, is each member of the backbone's ModuleLists and Sequentials (the
    outermost), what is left of the backbone, and the head. Nothing is done to a module that is sharded already.

    Raises:
        InputError: For separate heads: processes that have samples of different tasks would wait for each other.
    """
    if _compat.strategy_name(module._trainer) != FSDP2 or has_shards(module):
        return
    if module.head_kind == "separate":
        raise InputError("head='separate' with ModelParallelStrategy", "one layer for all tasks", "use head='multi'")
    from torch.distributed.fsdp import fully_shard

    mesh = module.device_mesh["data_parallel"]
    # fully_shard takes parameters as they are, and must not record it
    with torch.no_grad():
        for unit in (*_blocks(module.backbone), module.backbone, module.head):
            if any(True for _ in unit.parameters()):
                fully_shard(unit, mesh=mesh)


def _blocks(part: nn.Module) -> Iterator[nn.Module]:
    members = isinstance(part, nn.ModuleList | nn.Sequential)
    for child in part.children():
        if members and any(True for _ in child.parameters()):
            yield child
        else:
            yield from _blocks(child)
