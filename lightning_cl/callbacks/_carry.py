"""Takes the optimizer's state from one fit to the next."""

from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_cl._sharded_tensors import is_sharded, shard_like, whole_tensor
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import pad_to


class CarryOptimizer(Callback):
    """Loads an optimizer's state by parameter name; rows that a parameter gained are padded with zeros.

    The learning rate is not carried: every fit starts with its own.

    Args:
        state: ``{parameter name: {key: tensor or number}}`` of the fit before; empty at the first.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse several optimizers."""
        if stage == "fit" and not pl_module.automatic_optimization:
            raise InputError("optimizer_state='keep' with manual optimization", "automatic optimization", "use 'reset'")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Load, before a resumed fit restores its own state over it."""
        optimizer = trainer.optimizers[0]
        for name, parameter in pl_module.named_parameters():
            if name in self.state and any(parameter is p for g in optimizer.param_groups for p in g["params"]):
                optimizer.state[parameter] = {key: _fit(value, parameter) for key, value in self.state[name].items()}

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the state out."""
        optimizer = trainer.optimizers[0]
        self.state = {
            name: {
                k: v.detach().cpu().clone() if isinstance(v, Tensor) else v
                for k, v in optimizer.state[parameter].items()
            }
            for name, parameter in pl_module.named_parameters()
            if parameter in optimizer.state
        }


def _fit(value: Any, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() == 0:  # a step count, which optimizers keep on the CPU
        return value.clone()
    # factored states (Adafactor's rows and columns) have another shape than their parameter, and are taken as they are
    if is_sharded(parameter) and value.dim() == parameter.dim():
        return shard_like(value, parameter)
    value = whole_tensor(value)
    grows = value.shape != parameter.shape and value.dim() == parameter.dim()
    grown = pad_to(value, parameter.shape) if grows else value.clone()
    return torch.as_tensor(grown, device=parameter.device)
