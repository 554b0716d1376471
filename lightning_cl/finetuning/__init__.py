"""The module that is fine-tuned, its backbones and its head."""

from importlib import import_module
from typing import Any

_WHERE = {
    "FineTuningModule": "module",
    "MLP": "backbones",
    "TorchvisionBackbone": "backbones",
    "ClassifierHead": "head",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
