"""A module as it was at the end of the task before."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.functional.penalty import pad_to


class PreviousModel:
    """The parameters and buffers of a module at one moment, called through the module as it is now, in eval mode.

    There is no second module: nothing that DDP broadcasts, nothing in the module's ``state_dict``, and the state is
    tensors. Rows that a head has gained since are zeros, and their outputs are left out.

    State: a copy of every parameter and buffer, and how many outputs were known.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.n_outputs: int | None = None

    def __bool__(self) -> bool:
        return bool(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def take(self, module: nn.Module) -> None:
        """Remember the module as it is now."""
        self.tensors = {name: tensor.detach().clone() for name, tensor in _tensors_of(module).items()}
        names: Any = getattr(module, "class_names", None)
        self.n_outputs = len(names) if names is not None else None

    @torch.no_grad()
    def __call__(self, module: nn.Module, read: Callable[[Any, Any], Any], batch: Any) -> Any:
        """``read(module, batch)`` of then; of logits (N, C), or of the first of a tuple, the columns known then."""
        live = _tensors_of(module)
        here = {name: tensor.to(live[name].device) for name, tensor in self.tensors.items() if name in live}
        self.tensors.update(here)
        then = {f"module.{name}": pad_to(tensor, live[name].shape) for name, tensor in here.items()}
        with _compat.evaluating(module):
            output = torch.func.functional_call(_Reading(module, read), then, (batch,))
        logits = output[0] if isinstance(output, tuple) else output
        return logits[:, : self.n_outputs] if isinstance(logits, Tensor) and logits.dim() == 2 else logits

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives only."""
        return {"tensors": dict(self.tensors), "n_outputs": self.n_outputs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read what :meth:`state_dict` returned."""
        self.tensors, self.n_outputs = dict(state["tensors"]), state["n_outputs"]


class _Reading(nn.Module):
    """``functional_call`` exchanges the tensors of a module only around its ``forward``."""

    def __init__(self, module: nn.Module, read: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.module, self.read = module, read

    def forward(self, batch: Any) -> Any:
        return self.read(self.module, batch)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
