"""Options of a sequence that are mappings of their own: early stopping, and what the tuner searches."""

import inspect
from typing import Any

from lightning_cl.errors import InputError

STOPPING = ("patience", "monitor", "mode", "min_delta", "stopping_threshold", "divergence_threshold", "check_finite")
SEARCHED = {"lr": "lr_find", "batch_size": "scale_batch_size"}


def check_early_stopping(given: Any) -> None:
    """Refuse what :func:`early_stopping` cannot build.

    Raises:
        InputError: With the value.
    """
    if given is None:
        return
    unknown = sorted(set(given) - set(STOPPING)) if isinstance(given, dict) else [given]
    if unknown:
        raise InputError(f"early_stopping={given!r}", f"null, or some of {', '.join(STOPPING)}", "{patience: 3}")
    patience = given.get("patience")
    if patience is not None and (not isinstance(patience, int) or isinstance(patience, bool) or patience < 1):
        raise InputError(
            f"early_stopping.patience={patience!r}", "an integer >= 1, or null for none", "early_stopping.patience=3"
        )
    if given.get("mode") not in (None, "max", "min"):
        raise InputError(f"early_stopping.mode={given['mode']!r}", "'max' or 'min'", "early_stopping.mode=max")


def early_stopping(settings: Any, task: Any) -> Any:
    """A new ``EarlyStopping`` for the fit of a task, which so begins to count anew; None if there is to be none.

    Raises:
        InputError: If it would watch validation data that there are not.
    """
    given = {key: value for key, value in (settings.early_stopping or {}).items() if value is not None}
    if "patience" not in given:
        return None
    given = {"monitor": settings.monitor, "mode": settings.monitor_mode} | given
    if task.validation is None and given["monitor"].startswith("val"):
        raise InputError(
            f"early_stopping by {given['monitor']!r} without validation data",
            "a validation split",
            "set validation_fraction=0.1, or a metric of training: early_stopping.monitor=train_loss",
        )
    from lightning.pytorch.callbacks import EarlyStopping

    return EarlyStopping(**given)


def refuse_averaging_of_a_growing_head(state: Any) -> None:
    """Lightning's own weight averaging copies the module before its head has got the task's rows.

    Raises:
        InputError: For such a callback with a head that grows.
    """
    for callback in state.callbacks if hasattr(state.module, "learn_classes") else ():
        module, _, name = f"{type(callback).__module__}.{type(callback).__name__}".rpartition(".")
        if module.startswith(("lightning.", "pytorch_lightning.")) and hasattr(callback, "_average_model"):
            raise InputError(
                f"{name} with a head that grows", "lightning_cl.EMA, which begins behind the growth", "method=ema"
            )


def check_tune(given: Any) -> None:
    """Refuse what the tuner does not know.

    Raises:
        InputError: With the value.
    """
    if given is None:
        return
    known = [*SEARCHED.values(), *SEARCHED]
    if not isinstance(given, dict) or set(given) - set(known):
        raise InputError(f"tune={given!r}", f"null, or some of {', '.join(known)}", "{lr_find: true}")
    if not isinstance(given.get("lr_find", False), bool):
        raise InputError(f"tune.lr_find={given['lr_find']!r}", "true or false", "tune.lr_find=true")
    mode = given.get("scale_batch_size")
    if mode not in (None, "power", "binsearch"):
        raise InputError(f"tune.scale_batch_size={mode!r}", "null, power or binsearch", "tune.scale_batch_size=power")
    from lightning.pytorch.tuner import Tuner

    for key, method in SEARCHED.items():
        options = given.get(key) or {}
        taken = [
            name for name, p in inspect.signature(getattr(Tuner, method)).parameters.items() if p.default != p.empty
        ]
        own = {
            "train_dataloaders",
            "val_dataloaders",
            "dataloaders",
            "datamodule",
            "method",
            "update_attr",
            "attr_name",
        }
        allowed = sorted(set(taken) - own - {"batch_arg_name"} - ({"mode"} if key == "batch_size" else set()))
        if not isinstance(options, dict) or set(options) - set(allowed):
            raise InputError(
                f"tune.{key}={options!r}", f"options of Tuner.{method}: {', '.join(allowed)}", "leave it out"
            )
