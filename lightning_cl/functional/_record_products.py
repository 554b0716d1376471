"""Recorders of products: linear layers, matrix products, convolutions, and look-ups of embeddings."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_cl.functional._operations_conv import ConvOperation
from lightning_cl.functional._operations_embedding import EmbeddingOperation
from lightning_cl.functional._operations_linear import LinearOperation
from lightning_cl.functional._recording import Recording


def record_linear(recording: Recording, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear``: rows of the input times the weight, with the bias."""
    output = func(input, weight, bias)
    targets = recording.found(weight=weight, bias=bias)
    if output.requires_grad and input.dim() >= 2:
        recording.keep(LinearOperation(output, targets, input))
    return output


def record_addmm(recording: Recording, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Tensor:
    """``addmm``, as HF's Conv1D calls it: the weight is (in, out)."""
    output = func(input, mat1, mat2, **options)
    if output.requires_grad and not options and input.shape == mat2.shape[1:] and id(mat1) not in recording.targets:
        recording.keep(LinearOperation(output, recording.found(weight=mat2, bias=input), mat1, transposed=True))
    return output


def record_matmul(recording: Recording, func: Any, input: Tensor, other: Tensor) -> Tensor:
    """A product with a parameter on its right side, (in, out)."""
    output = func(input, other)
    if output.requires_grad and input.dim() >= 2 and other.dim() == 2 and id(input) not in recording.targets:
        recording.keep(LinearOperation(output, recording.found(weight=other), input, transposed=True))
    return output


def record_embedding(
    recording: Recording,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    """``F.embedding``; norms of rows and frequencies would tie samples to each other, and are left to autograd."""
    output = func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not output.requires_grad or max_norm is not None or scale_grad_by_freq or input.dim() == 0:
        return output
    output = recording.shared(output)
    indices = input.expand(output.shape[:-1])
    ignored = padding_idx % len(weight) if padding_idx is not None else None
    recording.keep(EmbeddingOperation(output, recording.found(weight=weight), indices, len(weight), ignored))
    return output


def record_convolution(transposed: bool) -> Callable[..., Tensor]:
    """The recorder of convolutions, or of their transposes, whose options come in another order."""

    def record(
        recording: Recording,
        func: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        output = func(input, weight, bias, *args, **kwargs)
        d = weight.dim() - 2
        order: tuple[str, ...] = ("stride", "padding", "dilation", "groups")
        if transposed:
            order = ("stride", "padding", "output_padding", "groups", "dilation")
        options = {**dict(zip(order, args, strict=False)), **kwargs}
        if not output.requires_grad or input.dim() != d + 2 or id(input) in recording.targets:
            return output
        dilation = _each(options.get("dilation", 1), d)
        operation = ConvOperation(
            output,
            recording.found(weight=weight, bias=bias),
            input,
            weight.shape,
            stride=_each(options.get("stride", 1), d),
            padding=_padding(options.get("padding", 0), weight.shape[2:], dilation),
            dilation=dilation,
            groups=options.get("groups", 1),
            transposed=transposed,
        )
        recording.keep(operation)
        return output

    return record


def _each(value: Any, d: int) -> list[int]:
    return [int(value)] * d if isinstance(value, int) else [int(v) for v in value] * (d if len(value) == 1 else 1)


def _padding(value: Any, kernel: Any, dilation: list[int]) -> list[tuple[int, int]]:
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        totals = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in _each(value, len(kernel))]
