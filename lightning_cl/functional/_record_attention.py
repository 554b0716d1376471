"""The recorder of multi-head attention, whose projections are no calls of their own."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_cl.functional._operations import Target
from lightning_cl.functional._operations_linear import LinearOperation
from lightning_cl.functional._record_products import record_linear
from lightning_cl.functional._recording import Recording


def record_attention(
    recording: Recording, func: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
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
    if recording.n_samples is None or len(args) > len(names):
        return func(query, key, value, *args, **kwargs)
    recording.rewritten = True
    size = options["embed_dim_to_check"]
    eye = torch.eye(size, dtype=query.dtype, device=query.device)
    if options.get("use_separate_proj_weight"):
        weights: list[Any] = [options[f"{role}_proj_weight"] for role in "qkv"]
        parts: list[Target | None] = [recording.targets.get(id(weight)) for weight in weights]
    else:
        packed = options["in_proj_weight"]
        name = recording.targets.get(id(packed))
        parts = [name and Target(name.name, i * size, (i + 1) * size) for i in range(3)]
        weights = list(packed.split(size))
    bias = options["in_proj_bias"]
    name = recording.targets.get(id(bias))
    bias_parts = [name and Target(name.name, i * size, (i + 1) * size) for i in range(3)]
    biases = bias.split(size) if bias is not None else [None] * 3
    projected = []
    for x, weight, part, shift, shift_part in zip((query, key, value), weights, parts, biases, bias_parts, strict=True):
        y = F.linear(x, weight, shift)
        targets = {role: target for role, target in (("weight", part), ("bias", shift_part)) if target}
        if targets and y.requires_grad:
            recording.keep(LinearOperation(y, targets, x))
        projected.append(y)
    out_weight, out_bias = options["out_proj_weight"], options["out_proj_bias"]
    changed = {"use_separate_proj_weight": True, "q_proj_weight": eye, "k_proj_weight": eye, "v_proj_weight": eye}
    changed |= {"in_proj_weight": None, "in_proj_bias": None, "out_proj_weight": eye, "out_proj_bias": None}
    output, attention = func(*projected, **(options | changed))
    if id(out_weight) in recording.targets or id(out_bias) in recording.targets:
        return record_linear(recording, F.linear, output, out_weight, out_bias), attention
    return F.linear(output, out_weight, out_bias), attention
