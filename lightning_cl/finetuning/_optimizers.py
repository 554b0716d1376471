"""The optimizer and scheduler of a module, from what its constructor was given."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.finetuning.parameter_groups import grouped_optimizer


def check_group_options(options: Any) -> dict[str, Any] | None:
    """``parameter_groups`` of the constructor, None if it is empty; values are checked where there are parameters."""
    if options is None or isinstance(options, Mapping):
        return dict(options) if options else None  # Hydra makes an empty mapping of a null file
    raise InputError(f"parameter_groups={options!r}", "a mapping of options, or None", "try {layer_decay: 0.75}")


def make_optimizers(module: Any) -> Any:
    """What ``configure_optimizers`` returns."""
    if module.parameter_group_options is None:
        optimizer = module.optimizer_factory(module.parameters())
    else:
        optimizer = grouped_optimizer(module.optimizer_factory, module, **module.parameter_group_options)
    if module.scheduler_factory is None:
        return optimizer
    length = {"total_steps": _total_steps(module)} if _asks_for_length(module.scheduler_factory) else {}
    scheduler = {"scheduler": module.scheduler_factory(optimizer, **length), "interval": module.scheduler_interval}
    return {"optimizer": optimizer, "lr_scheduler": {**scheduler, "monitor": module.monitor}}


def _asks_for_length(factory: Any) -> bool:
    """Whether ``total_steps`` is an argument without a value."""
    try:
        wanted = inspect.signature(factory).parameters.get("total_steps")
    except (TypeError, ValueError):
        return False
    return wanted is not None and wanted.default is inspect.Parameter.empty


def _total_steps(module: Any) -> int:
    """Calls of the scheduler's ``step()`` in the fit that begins; without a Trainer nothing is trained: any will do."""
    trainer = module._trainer
    if trainer is None:
        return 1
    total = trainer.estimated_stepping_batches if module.scheduler_interval == "step" else trainer.max_epochs
    if total is None or math.isinf(total) or total < 0:
        raise InputError(
            "a scheduler that asks for total_steps, in a training without an end",
            "a number of epochs or steps",
            "set trainer.max_epochs, or another scheduler",
        )
    return max(1, int(total))
