"""Another learning rate for a module that has been built."""

import functools
import inspect
from typing import Any

from lightning_cl.errors import InputError


def set_learning_rate(module: Any, lr: float) -> None:
    """Let the optimizers that a module will build start with ``lr``.

    A module of ours keeps what builds its optimizer in ``optimizer_factory``: its ``lr`` is set, as if by hand. Any
    other has to read ``lr`` or ``learning_rate`` of itself or its ``hparams``, as Lightning's tuner wants.

    Raises:
        InputError: If neither is there.
    """
    factory = getattr(module, "optimizer_factory", None)
    if factory is not None:
        if not _takes_lr(factory):
            raise InputError(
                f"optimizer {getattr(factory, '__name__', factory)!r} of {type(module).__name__}, which takes no lr",
                "a learning rate that can be set",
                "give functools.partial(torch.optim.SGD, lr=0.1)",
            )
        module.optimizer_factory = functools.partial(factory, lr=lr)
        return
    hparams: Any = getattr(module, "hparams", {})
    found = False
    for name in ("lr", "learning_rate"):
        if isinstance(getattr(module, name, None), int | float):
            setattr(module, name, lr)
            found = True
        if name in hparams:
            hparams[name] = lr
            found = True
        if found:
            return
    raise InputError(
        f"{type(module).__name__} without a learning rate",
        "an attribute lr or learning_rate that configure_optimizers reads",
        "self.lr = lr in its constructor",
    )


def _takes_lr(factory: Any) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    return "lr" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
