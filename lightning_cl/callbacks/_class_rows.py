"""Whose the rows of a classifier are, so that what is kept of one class is not used for another."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from lightning_cl.errors import InputError

BEHIND = "put new classes behind the old ones"
EXCLUDE = BEHIND + "; for other classes leave the head out of the penalty: exclude={!r}"


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


def refuse_other_rows(
    module: nn.Module, held: Iterable[str], rows: Mapping[str, Sequence[str]], hint: str = EXCLUDE
) -> None:
    """Refuse a classifier whose rows are no more those of the classes for which something is kept.

    Args:
        module: The module, before a fit.
        held: Names of parameters for which it is.
        rows: What :func:`class_rows` found when it was taken.
        hint: What to do; may name the pattern of the layer's parameters.

    Raises:
        InputError: With the classes then and now.
    """
    now = class_rows(module)
    for name in held:
        old, new = rows.get(name, []), now.get(name, [])
        if any(a != b for a, b in zip(old, new, strict=False)):
            layer = name.rpartition(".")[0]
            given = f"{layer or name} with the classes {list(new)}, kept as {list(old)}"
            raise InputError(given, "the old classes first, in their order", hint.format(f"^{layer}\\."))


def refuse_shrunk(named: Mapping[str, Tensor], importance: Mapping[str, Tensor]) -> None:
    """Refuse parameters that are smaller than when their importance was taken: they may grow only.

    Raises:
        InputError: With the name of the first, and both shapes.
    """
    for name, value in importance.items():
        now = named[name].shape if name in named else value.shape
        if len(now) != value.dim() or any(a < b for a, b in zip(now, value.shape, strict=True)):
            pattern = f"^{name.rpartition('.')[0] or name}"
            raise InputError(
                f"{name} of shape {tuple(now)}, of which an importance of shape {tuple(value.shape)} is kept",
                "a parameter that is as it was, or has grown",
                f"for another head leave it out of the penalty: exclude={pattern!r}",
            )
