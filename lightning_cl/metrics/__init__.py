"""torchmetrics classes over the accuracy matrix; the formulas are in :mod:`lightning_cl.functional.accuracy_matrix`."""

from importlib import import_module
from typing import Any

_WHERE = {
    "AverageAccuracy": "average_accuracy",
    "AverageIncrementalAccuracy": "average_incremental_accuracy",
    "BackwardTransfer": "backward_transfer",
    "Forgetting": "forgetting",
    "ForwardTransfer": "forward_transfer",
    "LearningAccuracy": "learning_accuracy",
    "MinAccuracy": "min_accuracy",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
