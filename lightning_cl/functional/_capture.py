"""What a forward pass does with parameters, seen at the functions that every module ends in.

Watching ``F.linear`` and its kin instead of modules covers layers that somebody wrote by hand, weights used outside of
their layer, ``nn.MultiheadAttention`` (whose projections are no module calls), and plain parameters.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_cl.functional._operations import Operation, Target
from lightning_cl.functional._operations_affine import AffineOperation
from lightning_cl.functional._operations_conv import ConvOperation
from lightning_cl.functional._operations_embedding import EmbeddingOperation
from lightning_cl.functional._operations_linear import LinearOperation


class Capture(TorchFunctionMode):
    """Records the operations on ``parameters`` inside a ``with`` block; what they return is unchanged.

    With ``n_samples``, a result that all samples share (the embedding of positions) is returned as one copy per sample,
    so that its gradient is known per sample; and the projections of multi-head attention are taken out of it.
    Both leave the values as they are: ``rewritten`` says whether there was any, to be checked.

    Args:
        parameters: Name to parameter.
        n_samples: Samples of the batch, or None to rewrite nothing.
    """

    def __init__(self, parameters: Mapping[str, Tensor], n_samples: int | None = None) -> None:
        super().__init__()
        self.targets = {id(value): Target(name) for name, value in parameters.items()}
        self.n_samples = n_samples
        self.operations: list[Operation] = []
        self.rewritten = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand calls that a recorder exists for to it."""
        kwargs = kwargs or {}
        recorder = RECORDERS.get(func)
        if recorder is None or not any(id(value) in self.targets for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        return recorder(self, func, *args, **kwargs)

    def found(self, **roles: Tensor | None) -> dict[str, Target]:
        """The roles that are played by parameters."""
        return {role: self.targets[id(value)] for role, value in roles.items() if id(value) in self.targets}

    def shared(self, output: Tensor) -> Tensor:
        """One copy per sample of what has been computed once for all of them."""
        n = self.n_samples
        if n is None or n == 1 or output.dim() < 2 or output.shape[0] != 1 or output.shape[1] == n:
            return output
        self.rewritten = True
        return output.expand(n, *output.shape[1:])

    def keep(self, operation: Operation) -> None:
        """Record an operation that autograd will differentiate."""
        self.operations.append(operation)


def _linear(capture: Capture, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output = func(input, weight, bias)
    targets = capture.found(weight=weight, bias=bias)
    if output.requires_grad and input.dim() >= 2:
        capture.keep(LinearOperation(output, targets, input))
    return output


def _addmm(capture: Capture, func: Any, input: Tensor, mat1: Tensor, mat2: Tensor, **options: Any) -> Tensor:
    output = func(input, mat1, mat2, **options)
    if output.requires_grad and not options and input.shape == mat2.shape[1:] and id(mat1) not in capture.targets:
        capture.keep(LinearOperation(output, capture.found(weight=mat2, bias=input), mat1, transposed=True))
    return output


def _matmul(capture: Capture, func: Any, input: Tensor, other: Tensor) -> Tensor:
    output = func(input, other)
    if output.requires_grad and input.dim() >= 2 and other.dim() == 2 and id(input) not in capture.targets:
        capture.keep(LinearOperation(output, capture.found(weight=other), input, transposed=True))
    return output


def _embedding(
    capture: Capture,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    output = func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not output.requires_grad or max_norm is not None or scale_grad_by_freq or input.dim() == 0:
        return output
    output = capture.shared(output)
    indices = input.expand(output.shape[:-1])
    ignored = padding_idx % len(weight) if padding_idx is not None else None
    capture.keep(EmbeddingOperation(output, capture.found(weight=weight), indices, len(weight), ignored))
    return output


def _convolution(transposed: bool) -> Callable[..., Tensor]:
    def record(
        capture: Capture,
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
        if not output.requires_grad or input.dim() != d + 2 or id(input) in capture.targets:
            return output
        dilation = _each(options.get("dilation", 1), d)
        operation = ConvOperation(
            output,
            capture.found(weight=weight, bias=bias),
            input,
            weight.shape,
            stride=_each(options.get("stride", 1), d),
            padding=_padding(options.get("padding", 0), weight.shape[2:], dilation),
            dilation=dilation,
            groups=options.get("groups", 1),
            transposed=transposed,
        )
        capture.keep(operation)
        return output

    return record


def _norm(
    capture: Capture, output: Tensor, plain: Callable[[], Tensor], channels: bool, **roles: Tensor | None
) -> Tensor:
    """The affine part of a norm; ``plain`` is the same norm without it."""
    targets = capture.found(**roles)
    if output.requires_grad and output.dim() >= 2:
        shape = next(value.shape for value in roles.values() if value is not None)
        trailing = [1] * (output.dim() - len(shape)) + list(shape)
        broadcast = [1, *shape, *[1] * (output.dim() - 2)] if channels else trailing
        with torch.no_grad():
            factor = plain() if "weight" in targets else None
        capture.keep(AffineOperation(output, targets, factor, broadcast, shape))
    return output


def _layer_norm(
    capture: Capture,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    output = func(input, normalized_shape, weight, bias, eps)
    return _norm(
        capture, output, lambda: func(input, normalized_shape, None, None, eps), False, weight=weight, bias=bias
    )


def _rms_norm(
    capture: Capture,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    output = func(input, normalized_shape, weight, eps)
    return _norm(capture, output, lambda: func(input, normalized_shape, None, eps), False, weight=weight)


def _group_norm(
    capture: Capture,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    output = func(input, num_groups, weight, bias, eps)
    return _norm(capture, output, lambda: func(input, num_groups, None, None, eps), True, weight=weight, bias=bias)


def _batch_norm(
    capture: Capture,
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
    output = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:  # the samples of a batch are mixed
        return output
    return _norm(
        capture,
        output,
        lambda: func(input, running_mean, running_var, None, None, False, momentum, eps),
        True,
        weight=weight,
        bias=bias,
    )


def _instance_norm(
    capture: Capture,
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
    output = func(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)
    # the second call must not move the running statistics once more
    means = (None, None) if use_input_stats else (running_mean, running_var)
    return _norm(
        capture,
        output,
        lambda: func(input, *means, None, None, use_input_stats, momentum, eps),
        True,
        weight=weight,
        bias=bias,
    )


def _product(capture: Capture, func: Any, input: Any, other: Any, **options: Any) -> Any:
    return _elementwise(capture, func(input, other, **options), input, other, options, multiplied=True)


def _added(capture: Capture, func: Any, input: Any, other: Any, **options: Any) -> Any:
    return _elementwise(capture, func(input, other, **options), input, other, options, multiplied=False)


def _elementwise(
    capture: Capture, output: Tensor, input: Any, other: Any, options: Mapping[str, Any], *, multiplied: bool
) -> Tensor:
    mine, factor = (input, other) if id(input) in capture.targets else (other, input)
    both = id(input) in capture.targets and id(other) in capture.targets
    if both or options or not output.requires_grad or output.dim() < 2 or mine.dim() > output.dim():
        return output
    output = capture.shared(output)
    if multiplied:
        factor = factor.detach() if isinstance(factor, Tensor) else torch.as_tensor(factor, device=output.device)
    broadcast = [1] * (output.dim() - mine.dim()) + list(mine.shape)
    targets = capture.found(**{"weight" if multiplied else "bias": mine})
    capture.keep(AffineOperation(output, targets, factor if multiplied else None, broadcast, mine.shape))
    return output


def _expand(capture: Capture, func: Any, input: Tensor, *sizes: Any, **options: Any) -> Tensor:
    output = func(input, *sizes, **options)
    if output.requires_grad and output.dim() >= 2:
        output = capture.shared(output)
        broadcast = [1] * (output.dim() - input.dim()) + list(input.shape)
        capture.keep(AffineOperation(output, capture.found(bias=input), None, broadcast, input.shape))
    return output


def _attention(
    capture: Capture, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Any:
    """Multi-head attention with its four projections done, and recorded, outside of it."""
    names: tuple[str, ...] = (
        "embed_dim_to_check",
        "num_heads",
        "in_proj_weight",
        "in_proj_bias",
        "bias_k",
        "bias_v",
        "add_zero_attn",
    )
    names += ("dropout_p", "out_proj_weight", "out_proj_bias", "training", "key_padding_mask", "need_weights")
    names += ("attn_mask", "use_separate_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
    options = {**dict(zip(names, args, strict=False)), **kwargs}
    if capture.n_samples is None or len(args) > len(names):
        return func(query, key, value, *args, **kwargs)
    capture.rewritten = True
    size = options["embed_dim_to_check"]
    eye = torch.eye(size, dtype=query.dtype, device=query.device)
    if options.get("use_separate_proj_weight"):
        weights: list[Any] = [options[f"{role}_proj_weight"] for role in "qkv"]
        parts: list[Target | None] = [capture.targets.get(id(weight)) for weight in weights]
    else:
        packed = options["in_proj_weight"]
        name = capture.targets.get(id(packed))
        parts = [name and Target(name.name, i * size, (i + 1) * size) for i in range(3)]
        weights = list(packed.split(size))
    bias = options["in_proj_bias"]
    name = capture.targets.get(id(bias))
    bias_parts = [name and Target(name.name, i * size, (i + 1) * size) for i in range(3)]
    biases = bias.split(size) if bias is not None else [None] * 3
    projected = []
    for x, weight, part, shift, shift_part in zip((query, key, value), weights, parts, biases, bias_parts, strict=True):
        y = F.linear(x, weight, shift)
        targets = {role: target for role, target in (("weight", part), ("bias", shift_part)) if target}
        if targets and y.requires_grad:
            capture.keep(LinearOperation(y, targets, x))
        projected.append(y)
    out_weight, out_bias = options["out_proj_weight"], options["out_proj_bias"]
    changed = {"use_separate_proj_weight": True, "q_proj_weight": eye, "k_proj_weight": eye, "v_proj_weight": eye}
    changed |= {"in_proj_weight": None, "in_proj_bias": None, "out_proj_weight": eye, "out_proj_bias": None}
    output, attention = func(*projected, **(options | changed))
    if id(out_weight) in capture.targets or id(out_bias) in capture.targets:
        return _linear(capture, F.linear, output, out_weight, out_bias), attention
    return F.linear(output, out_weight, out_bias), attention


def _each(value: Any, d: int) -> list[int]:
    return [int(value)] * d if isinstance(value, int) else [int(v) for v in value] * (d if len(value) == 1 else 1)


def _padding(value: Any, kernel: Any, dilation: list[int]) -> list[tuple[int, int]]:
    if value == "valid":
        return [(0, 0)] * len(kernel)
    if value == "same":
        totals = [gap * (size - 1) for gap, size in zip(dilation, kernel, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(size, size) for size in _each(value, len(kernel))]


RECORDERS: dict[Any, Callable[..., Any]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    F.embedding: _embedding,
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.instance_norm: _instance_norm,
    F.multi_head_attention_forward: _attention,
    torch.Tensor.expand: _expand,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution(False)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _convolution(True)),
    **dict.fromkeys((torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), _product),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), _added),
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), _added),
}
