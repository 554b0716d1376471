"""The same values in every process: samples of all, in the order of ranks."""

from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.batches import Leaf, concatenate_leaves, leaves, rebuild


def world_size() -> int:
    """Processes of this job."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_batch(batch: Any, device: torch.device) -> Any:
    """The batches of all processes as one of the same structure, on the CPU; every process must call this."""
    return rebuild(batch, gather_leaves(leaves(batch), device))


def gather_leaves(values: dict[str, Leaf], device: torch.device) -> dict[str, Leaf]:
    """Each leaf of all processes, in the order of ranks, on the CPU. Token batches are padded to the longest.

    Tensors travel as bytes over ``all_gather``, so that every dtype may; lists as objects.
    """
    if world_size() == 1:
        return values
    own = {path: (leaf.dtype, leaf.shape) if isinstance(leaf, Tensor) else leaf for path, leaf in values.items()}
    described: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(described, own)
    found: dict[str, Leaf] = {}
    for path, leaf in values.items():
        parts: list[Leaf] = [each[path] for each in described]
        if isinstance(leaf, Tensor):
            parts = list(_gather(leaf, [each[path] for each in described], device))
        for part in parts:
            found[path] = concatenate_leaves(path, found[path], part) if path in found else part
    return found


def from_first(values: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The first process's values; devices may differ in the last digit, and memories must not."""
    if world_size() > 1:
        for name, value in values.items():
            values[name] = value.to(device).contiguous()
            torch.distributed.broadcast(values[name], 0)
    return values


def same_buffers(module: torch.nn.Module) -> None:
    """Give every process the first one's buffers, as DDP does before each forward, but not after the last.

    Without it BatchNorm's running statistics, and all that is computed with them, differ between processes.
    """
    if world_size() > 1:
        nccl = torch.distributed.get_backend() == "nccl"  # sends from its device only, and a fit ends on the CPU
        with torch.no_grad():
            for buffer in module.buffers():
                sent = buffer.cuda() if nccl and not buffer.is_cuda else buffer
                torch.distributed.broadcast(sent, 0)
                if sent is not buffer:
                    buffer.copy_(sent)


def _gather(leaf: Tensor, described: list[tuple[torch.dtype, torch.Size]], device: torch.device) -> list[Tensor]:
    sizes = [shape.numel() * dtype.itemsize for dtype, shape in described]
    sent = torch.zeros(max(sizes), dtype=torch.uint8, device=device)
    sent[: leaf.nbytes] = leaf.detach().to(device).contiguous().reshape(-1).view(torch.uint8)
    received = [torch.empty_like(sent) for _ in described]
    torch.distributed.all_gather(received, sent)
    return [
        part[:size].cpu().view(dtype).view(shape)
        for part, size, (dtype, shape) in zip(received, sizes, described, strict=True)
    ]
