"""What a forward pass does with parameters, seen at the functions that every module ends in.

Watching ``F.linear`` and its kin instead of modules covers layers that somebody wrote by hand, weights used outside of
their layer, ``nn.MultiheadAttention`` (whose projections are no module calls), and plain parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from lightning_cl.functional._record_affine import (
    record_added,
    record_batch_norm,
    record_expand,
    record_group_norm,
    record_instance_norm,
    record_layer_norm,
    record_product,
    record_rms_norm,
)
from lightning_cl.functional._record_attention import record_attention
from lightning_cl.functional._record_products import (
    record_addmm,
    record_convolution,
    record_embedding,
    record_linear,
    record_matmul,
)
from lightning_cl.functional._recording import Recording


class Capture(Recording, TorchFunctionMode):
    """Records the operations on ``parameters`` inside a ``with`` block; what they return is unchanged.

    With ``n_samples``, a result that all samples share (the embedding of positions) is returned as one copy per sample,
    so that its gradient is known per sample; and the projections of multi-head attention are taken out of it.
    Both leave the values as they are: ``rewritten`` says whether there was any, to be checked.

    Args:
        parameters: Name to parameter.
        n_samples: Samples of the batch, or None to rewrite nothing.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand calls that a recorder exists for to it."""
        kwargs = kwargs or {}
        recorder = RECORDERS.get(func)
        if recorder is None or not any(id(value) in self.targets for value in (*args, *kwargs.values())):
            return func(*args, **kwargs)
        return recorder(self, func, *args, **kwargs)


RECORDERS: dict[Any, Callable[..., Any]] = {
    F.linear: record_linear,
    torch.addmm: record_addmm,
    F.embedding: record_embedding,
    F.layer_norm: record_layer_norm,
    F.rms_norm: record_rms_norm,
    F.group_norm: record_group_norm,
    F.batch_norm: record_batch_norm,
    F.instance_norm: record_instance_norm,
    F.multi_head_attention_forward: record_attention,
    torch.Tensor.expand: record_expand,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), record_convolution(False)),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), record_convolution(True)),
    **dict.fromkeys(
        (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__), record_matmul
    ),
    **dict.fromkeys((torch.mul, torch.Tensor.mul, torch.Tensor.__mul__, torch.Tensor.__rmul__), record_product),
    **dict.fromkeys((torch.add, torch.Tensor.add, torch.Tensor.__add__, torch.Tensor.__radd__), record_added),
    **dict.fromkeys((torch.Tensor.add_, torch.Tensor.__iadd__), record_added),
}
