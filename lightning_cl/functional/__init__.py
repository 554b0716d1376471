"""Pure tensor functions; nothing of Lightning and nothing of ours is imported here."""

from importlib import import_module
from typing import Any

_WHERE = {
    "diagonal_fisher": "fisher",
    "derive_seed": "seeding",
    "generator": "seeding",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
