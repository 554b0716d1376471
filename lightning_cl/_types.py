"""Finds words where a constructor wants a number, before anything is built."""

import pkgutil
import types
import typing
from typing import Any

from lightning_cl.errors import InputError

NUMBERS = {int: "an integer", float: "a number", bool: "true or false", type(None): "null"}


def refuse_words_for_numbers(config: dict[str, Any]) -> None:
    """Refuse a string given to an argument that is annotated as a number, in every section with a ``_target_``.

    Constructors seldom check their arguments' types, so that the mistake would surface in the middle of a run.

    Args:
        config: The config as plain, resolved values.

    Raises:
        InputError: For the first such value; the outermost, because inner sections repeat it.
    """
    level: list[tuple[str, Any]] = [("", config)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, section in level:
            if isinstance(section, dict):
                _refuse_in_section(path, section)
                below += [(f"{path}.{key}" if path else str(key), value) for key, value in section.items()]
            elif isinstance(section, list):
                below += [(f"{path}[{i}]", value) for i, value in enumerate(section)]
        level = below


def _refuse_in_section(path: str, section: dict[str, Any]) -> None:
    given = {str(key): value for key, value in section.items() if isinstance(value, str) and key != "_target_"}
    hints = _hints(str(section["_target_"])) if given and "_target_" in section else {}
    for key, value in given.items():
        kinds = _kinds(hints.get(key))
        words = [word for kind in kinds if typing.get_origin(kind) is typing.Literal for word in typing.get_args(kind)]
        numbers = [kind for kind in kinds if typing.get_origin(kind) is not typing.Literal]
        if numbers and all(kind in NUMBERS for kind in numbers) and value not in words:
            expected = " or ".join([*(NUMBERS[kind] for kind in numbers), *map(repr, words)])
            raise InputError(f"{path}.{key}={value!r}", expected, "leave it out for the default")


def _hints(target: str) -> dict[str, Any]:
    try:
        found = pkgutil.resolve_name(target)
        return typing.get_type_hints(found.__init__ if isinstance(found, type) else found)  # type: ignore[misc]
    except Exception:  # what cannot be found or read is reported where it is built
        return {}


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, tensors left out."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else [annotation] if annotation is not None else []
    return [kind for kind in kinds if getattr(kind, "__name__", "") != "Tensor"]
