"""Fine-tuning and continual learning for PyTorch Lightning.

Nothing heavy is imported until a name is used: ``import lightning_cl`` loads neither torch nor lightning.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "EWC": "callbacks.ewc",
    "Replay": "callbacks.replay",
    "FreezingSchedule": "callbacks.freezing",
    "FineTuningModule": "finetuning.module",
    "ReplayDataModule": "streams.replay_datamodule",
    "InputError": "errors",
    "learn_task": "sequence",
    "run_sequence": "sequence",
}
__all__ = sorted([*_WHERE, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
