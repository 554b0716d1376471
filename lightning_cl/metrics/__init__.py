"""torchmetrics classes over the accuracy matrix; the formulas are in :mod:`lightning_cl.functional.accuracy_matrix`."""

from lightning_cl._lazy import lazy

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
__getattr__ = lazy(__name__, _WHERE)
