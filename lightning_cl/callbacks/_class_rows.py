"""Whose the rows of a classifier are, so that a penalty does not pull one class's row to another's."""

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from lightning_cl.errors import InputError

HINT = "put new classes behind the old ones; for other classes leave the head out of the penalty: exclude={!r}"


def class_rows(module: nn.Module) -> dict[str, list[str]]:
    """Class names of the rows of parameters, for classifiers that know them (``replace_head`` makes such).

    Example:
        >>> head = nn.Linear(2, 2)
        >>> head.class_names = ["cat", "dog"]
        >>> class_rows(nn.Sequential(nn.Linear(2, 2), head))
        {'1.weight': ['cat', 'dog'], '1.bias': ['cat', 'dog']}
    """
    found: dict[str, list[str]] = {}
    for name, part in module.named_modules():
        names = getattr(part, "class_names", None)
        if isinstance(names, list | tuple) and names:
            for key, parameter in part.named_parameters(recurse=False):
                if parameter.dim() and len(parameter) % len(names) == 0:
                    found[f"{name}.{key}" if name else key] = [str(each) for each in names]
    return found


def refuse_other_rows(module: nn.Module, held: Iterable[str], rows: Mapping[str, Sequence[str]]) -> None:
    """Refuse a classifier whose rows are no more those of the classes for which importances are kept.

    Args:
        module: The module, before a fit.
        held: Names of parameters with an importance.
        rows: What :func:`class_rows` found when it was taken.

    Raises:
        InputError: With the classes then and now.
    """
    now = class_rows(module)
    for name in held:
        old, new = rows.get(name, []), now.get(name, [])
        if any(a != b for a, b in zip(old, new, strict=False)):
            layer = name.rpartition(".")[0]
            given = f"{layer or name} with the classes {list(new)}, penalised as {list(old)}"
            raise InputError(given, "the old classes first, in their order", HINT.format(f"^{layer}\\."))
