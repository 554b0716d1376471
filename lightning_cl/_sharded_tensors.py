"""Tensors that are split over processes (``DTensor``): a part of them, all of them, and their like."""

import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.penalty import pad_to


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is split over processes."""
    # imported by whoever has made one; it costs a second
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory; the tensor itself if it is whole."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_tensor(tensor: Tensor) -> Tensor:
    """All parts of a split tensor; all processes call it alike."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor padded to the shape of ``like``, on its device, and split as it is; all processes call it alike."""
    if tensor.shape == like.shape and is_sharded(tensor) == is_sharded(like):
        return tensor.to(like.device)
    tensor = pad_to(whole_tensor(tensor).detach().to(like.device), like.shape).contiguous()
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    part = distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()
    # a view would hold the whole tensor
    return DTensor.from_local(
        part.clone(), mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest value of all, 0 where there is none; all processes call it alike."""
    tensors = list(tensors)
    found = max((float(part.max()) for part in map(local, tensors) if part.numel()), default=0.0)
    if not any(map(is_sharded, tensors)):
        return found
    over_all = torch.tensor(found, device=local(tensors[0]).device)
    torch.distributed.all_reduce(over_all, torch.distributed.ReduceOp.MAX)
    return float(over_all)


def gathered(state: Any) -> Any:
    """A state (mappings of mappings) with whole tensors on the CPU for split ones; all processes call it alike.

    Only the first process, which writes, gets them: the others hold empty ones.
    """
    if is_sharded(state):
        full = state.detach().full_tensor()
        return full.cpu() if is_first() else full.new_empty(0, device="cpu")
    if isinstance(state, Mapping) and holds_shards(state):
        return {key: gathered(value) for key, value in state.items()}
    return state


def holds_shards(state: Any) -> bool:
    """Whether a state (mappings of mappings) holds a split tensor."""
    return any(map(holds_shards, state.values())) if isinstance(state, Mapping) else is_sharded(state)


def is_first() -> bool:
    """Whether this process, of those that have met, writes."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
