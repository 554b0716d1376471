"""Recorders of norms, and of parameters that are added, multiplied or expanded."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional._operations_affine import AffineOperation
from lightning_cl.functional._recording import Recording


def _norm(
    recording: Recording, output: Tensor, plain: Callable[[], Tensor], channels: bool, **roles: Tensor | None
) -> Tensor:
    """The affine part of a norm; ``plain`` is the same norm without it."""
    targets = recording.found(**roles)
    if output.requires_grad and output.dim() >= 2:
        shape = next(value.shape for value in roles.values() if value is not None)
        trailing = [1] * (output.dim() - len(shape)) + list(shape)
        broadcast = [1, *shape, *[1] * (output.dim() - 2)] if channels else trailing
        with torch.no_grad():
            factor = plain() if "weight" in targets else None
        recording.keep(AffineOperation(output, targets, factor, broadcast, shape))
    return output


def record_layer_norm(
    recording: Recording,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.layer_norm``."""
    output = func(input, normalized_shape, weight, bias, eps)
    return _norm(
        recording, output, lambda: func(input, normalized_shape, None, None, eps), False, weight=weight, bias=bias
    )


def record_rms_norm(
    recording: Recording,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """``F.rms_norm``."""
    output = func(input, normalized_shape, weight, eps)
    return _norm(recording, output, lambda: func(input, normalized_shape, None, eps), False, weight=weight)


def record_group_norm(
    recording: Recording,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.group_norm``."""
    output = func(input, num_groups, weight, bias, eps)
    return _norm(recording, output, lambda: func(input, num_groups, None, None, eps), True, weight=weight, bias=bias)


def record_batch_norm(
    recording: Recording,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.batch_norm`` with running statistics; those of a batch mix its samples."""
    output = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:  # the samples of a batch are mixed
        return output
    return _norm(
        recording,
        output,
        lambda: func(input, running_mean, running_var, None, None, False, momentum, eps),
        True,
        weight=weight,
        bias=bias,
    )


def record_instance_norm(
    recording: Recording,
    func: Any,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """``F.instance_norm``, with statistics of its own or running ones."""
    output = func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    # the second call must not move the running statistics once more
    means = (None, None) if use_input_stats else (running_mean, running_var)
    return _norm(
        recording,
        output,
        lambda: func(input, *means, None, None, use_input_stats, momentum, eps),
        True,
        weight=weight,
        bias=bias,
    )


def record_product(recording: Recording, func: Any, input: Any, other: Any, **options: Any) -> Any:
    """A parameter times something, position by position."""
    return _elementwise(recording, func(input, other, **options), input, other, options, multiplied=True)


def record_added(recording: Recording, func: Any, input: Any, other: Any, **options: Any) -> Any:
    """A parameter that is added."""
    return _elementwise(recording, func(input, other, **options), input, other, options, multiplied=False)


def _elementwise(
    recording: Recording, output: Tensor, input: Any, other: Any, options: Mapping[str, Any], *, multiplied: bool
) -> Tensor:
    mine, factor = (input, other) if id(input) in recording.targets else (other, input)
    both = id(input) in recording.targets and id(other) in recording.targets
    if both or options or not output.requires_grad or output.dim() < 2 or mine.dim() > output.dim():
        return output
    output = recording.shared(output)
    if multiplied:
        factor = factor.detach() if isinstance(factor, Tensor) else torch.as_tensor(factor, device=output.device)
    broadcast = [1] * (output.dim() - mine.dim()) + list(mine.shape)
    targets = recording.found(**{"weight" if multiplied else "bias": mine})
    recording.keep(AffineOperation(output, targets, factor if multiplied else None, broadcast, mine.shape))
    return output


def record_expand(recording: Recording, func: Any, input: Tensor, *sizes: Any, **options: Any) -> Tensor:
    """A parameter that is repeated along new axes (a class token)."""
    output = func(input, *sizes, **options)
    if output.requires_grad and output.dim() >= 2:
        output = recording.shared(output)
        broadcast = [1] * (output.dim() - input.dim()) + list(input.shape)
        recording.keep(AffineOperation(output, recording.found(bias=input), None, broadcast, input.shape))
    return output
