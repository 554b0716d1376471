"""Large CPU tensors walked in pieces that stay in cache."""

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements per chunk: a temporary of it (512 KiB in fp32) is still in the second-level cache when it is used. From LARGE
# elements on, measured, the walk beats a full-size temporary (0.8x on ResNet-18); below it loses to its own calls.
CHUNK = 131_072
LARGE = 500_000


def is_uniform(*tensors: Tensor) -> bool:
    """All of one dtype, in which sums of products may be formed."""
    return len({tensor.dtype for tensor in tensors}) == 1 and tensors[0].dtype not in (torch.float16, torch.bfloat16)


def pays(*tensors: Tensor) -> bool:
    """Whether these, all of one dtype and shape, are better walked in chunks."""
    return tensors[0].numel() >= LARGE and all(
        # a subclass (DTensor) may not be viewed and split behind its back
        type(t) in (Tensor, torch.nn.Parameter) and t.device.type == "cpu" and t.is_contiguous()
        for t in tensors
    )


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of flat pieces, in step, behind a scratch buffer of their size: ``(scratch, piece, piece, ...)``."""
    buffer = torch.empty(CHUNK, dtype=tensors[0].dtype)
    for pieces in zip(*(tensor.detach().view(-1).split(CHUNK) for tensor in tensors), strict=True):
        size = pieces[0].numel()
        yield buffer if size == CHUNK else buffer[:size], *pieces


def wide(tensor: Tensor) -> Tensor:
    """At least fp32."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
