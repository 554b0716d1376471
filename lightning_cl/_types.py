"""Finds values of a wrong kind in a config, before anything is built."""

import collections.abc
import math
import types
import typing
from typing import Any

from lightning_cl._signatures import OURS, keyword_arguments
from lightning_cl.errors import InputError

WORDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "null",
    list: "a list",
    dict: "a mapping",
}
NUMBERS = (int, float, bool, type(None))
LISTS = (list, tuple, set, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
MAPPINGS = (dict, collections.abc.Mapping)


def refuse_wrong_kinds(config: dict[str, Any]) -> None:
    """Refuse what is not set, and values that are not of the kind that an argument is annotated with.

    Constructors seldom check their arguments' types, so that the mistake would surface in the middle of a run. In
    sections whose ``_target_`` is ours every annotation counts; elsewhere only those that are numbers, because other
    people's annotations are not always complete.

    Args:
        config: The config as plain, resolved values.

    Raises:
        InputError: For the first such value; the outermost, because inner sections repeat it.
    """
    level: list[tuple[str, Any]] = [("", config)]
    while level:
        below: list[tuple[str, Any]] = []
        for path, section in level:
            if section == "???":
                raise InputError(f"{path} is not set", "a value", f"set {path}=VALUE")
            if isinstance(section, dict):
                _refuse_in_section(path, section)
                below += [(f"{path}.{key}" if path else str(key), value) for key, value in section.items()]
            elif isinstance(section, list):
                below += [(f"{path}[{i}]", value) for i, value in enumerate(section)]
        level = below


def refuse_kind(name: str, value: Any, annotation: Any) -> None:
    """Refuse a value that is not of the kind that ``annotation`` says.

    Raises:
        InputError: Naming ``name``.
    """
    kinds = _kinds(annotation)
    if kinds and value != "???" and not any(_fits(value, kind) for kind in kinds):
        expected = " or ".join(dict.fromkeys(_said(kind) for kind in kinds))
        raise InputError(f"{name}={short(value)}", expected, "leave it out for the default")


def _refuse_in_section(path: str, section: dict[str, Any]) -> None:
    if "_target_" not in section:
        return
    target = section["_target_"]
    if not isinstance(target, str) or not target:
        raise InputError(f"{path}._target_={target!r}", "the import path of a class or function", "leave it out")
    if not isinstance(section.get("_partial_", True), bool):
        raise InputError(f"{path}._partial_={section['_partial_']!r}", "true or false", "leave it out")
    hints = keyword_arguments(target)
    for key, value in section.items():
        if key not in hints or str(key).startswith("_"):
            continue
        kinds = _kinds(hints[key])
        numeric = all(kind in NUMBERS or typing.get_origin(kind) is typing.Literal for kind in kinds)
        if target.startswith(OURS) or (numeric and isinstance(value, str | list | dict | float)):
            refuse_kind(f"{path}.{key}", value, hints[key])


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return any(value == word and type(value) is type(word) for word in inner)
    if kind in (type(None), bool, str):
        # a group's option without keys is an empty mapping
        return value in (None, {}) if kind is type(None) else isinstance(value, kind)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin in LISTS:
        made = origin is collections.abc.Iterable and isinstance(value, dict) and "_target_" in value
        each = [part for part in inner if part is not Ellipsis][:1]
        of_one_kind = origin is not tuple or (len(inner) == 2 and inner[1] is Ellipsis)
        items = value if isinstance(value, list) and each and of_one_kind else []
        return made or (isinstance(value, list) and all(_any_fits(item, each[0]) for item in items))
    if origin in MAPPINGS:
        return isinstance(value, dict)
    if getattr(kind, "__name__", "") == "Path":
        return isinstance(value, str)
    return isinstance(value, dict) and "_target_" in value  # an object, or something to call


def _any_fits(value: Any, annotation: Any) -> bool:
    kinds = _kinds(annotation)
    return not kinds or any(_fits(value, kind) for kind in kinds)


def _said(kind: Any) -> str:
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    if origin in LISTS or origin in MAPPINGS:
        return "a mapping" if origin in MAPPINGS else "a list"
    return WORDS.get(kind) or ("a path" if getattr(kind, "__name__", "") == "Path" else "a section with a _target_")


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    said = str(value) if isinstance(value, float) and not math.isfinite(value) else repr(value)
    return said if len(said) <= 100 else f"{said[:100]}..."


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, tensors left out; none where everything is allowed."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    kinds = typing.get_args(annotation) if union else [annotation] if annotation is not None else []
    if any(kind is Any or isinstance(kind, typing.TypeVar) for kind in kinds):
        return []
    return [kind for kind in kinds if getattr(kind, "__name__", "") != "Tensor"]
