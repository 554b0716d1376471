"""What constructors and functions take by name. Imports nothing heavy."""

import inspect
import pkgutil
import typing
from typing import Any

OURS = "lightning_cl."


def keyword_arguments(target: Any) -> dict[str, Any]:
    """The arguments that a class or function takes by name, each with its annotation; none if it cannot be found.

    What is behind ``**options: Unpack[Options]`` is named too, and in a class of ours behind ``**options: Any``, which
    it hands to its base. An annotation that is missing or cannot be read is ``Any``.

    Args:
        target: Its import path.

    Example:
        >>> keyword_arguments("lightning_cl.errors.InputError")
        {'given': <class 'str'>, 'expected': <class 'str'>, 'hint': <class 'str'>}
    """
    try:
        found = pkgutil.resolve_name(str(target))
    except Exception:  # an import may fail in any way
        return {}
    return _of_class(found.__mro__) if isinstance(found, type) else _of(found, found)[0]


def _of_class(classes: tuple[type, ...]) -> dict[str, Any]:
    owner = next(i for i, each in enumerate(classes) if "__init__" in vars(each))
    names, handed_on = _of(classes[owner], classes[owner].__init__)  # type: ignore[misc]
    if handed_on and classes[owner].__module__.startswith(OURS):
        names = {**_of_class(classes[owner + 1 :]), **names}
    return names


def _of(found: Any, annotated: Any) -> tuple[dict[str, Any], bool]:
    """Names and annotations, and whether there are more that nothing is said of."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return {}, False
    try:
        hints = typing.get_type_hints(annotated)
    except Exception:  # other people's annotations may name what is not there
        hints = {}
    by_name = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
    names = {p.name: hints.get(p.name, Any) for p in by_name}
    for p in parameters:
        if p.kind is p.VAR_KEYWORD:
            if typing.get_origin(hints.get(p.name)) is not typing.Unpack:
                return names, True
            names |= typing.get_type_hints(typing.get_args(hints[p.name])[0])
    return names, False
