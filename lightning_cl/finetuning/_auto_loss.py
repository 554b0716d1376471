"""The loss of anybody's module on a batch."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.memory import find_labels


def loss_function(module: Any) -> Callable[[Any, Any], Tensor]:
    """``(module, batch) -> loss``: that of ``training_step``; without one the cross-entropy, or a mapping's own loss.

    Raises:
        InputError: For a module that optimizes manually; later, for a batch of another kind.
    """
    if not hasattr(module, "training_step"):
        return _plain
    if not getattr(module, "automatic_optimization", True):
        given = f"{type(module).__name__} with automatic_optimization=False"
        raise InputError(given, "a training_step that returns the loss", "give loss_fn=lambda module, batch: loss")
    step = _compat.training_step_of(module)

    def of_step(_: Any, batch: Any) -> Tensor:
        output = step(batch, 0)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        if not isinstance(loss, Tensor):
            given = f"training_step that returns {type(output).__name__}"
            raise InputError(given, "a loss", "give loss_fn=lambda module, batch: loss")
        return loss

    return of_step


def _plain(module: Any, batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        loss = getattr(module(**batch), "loss", None)
        if isinstance(loss, Tensor):
            return loss
    elif isinstance(batch, tuple | list) and len(batch) > 1 and find_labels(batch) is not None:
        return cross_entropy(module(batch[0]), find_labels(batch))  # type: ignore[arg-type]
    given = f"a batch of type {type(batch).__name__} for a {type(module).__name__} without training_step"
    raise InputError(given, "(x, y) with integer labels", "give loss_fn=lambda module, batch: loss")
