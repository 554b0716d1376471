"""A penalty from a file, for a module."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import pad_to
from lightning_cl.importance_files import ImportanceFile, load_importance


def read_file(path: str | Path) -> ImportanceFile:
    """What is in the file that an argument ``importance_path`` names.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        return load_importance(path)
    except InputError as error:
        raise InputError(f"importance_path={str(path)!r}: {error.given}", error.expected, error.hint) from error


def fitted(
    file: ImportanceFile, parameters: Mapping[str, Tensor], path: str | Path
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The file's importance and anchor, padded with zeros to the shapes of parameters that have grown.

    Args:
        file: What was read.
        parameters: Name to parameter of the module.
        path: Where it was read from, for messages.

    Raises:
        InputError: Naming the parameters of the file that the module does not have, or not in a shape that fits.
    """
    importance, anchor, unfit = {}, {}, []
    for name, value in file.importance.items():
        try:
            shape = parameters[name].shape
            importance[name], anchor[name] = pad_to(value, shape), pad_to(file.anchor[name], shape)
        except (KeyError, ValueError):
            has = f", here {tuple(parameters[name].shape)}" if name in parameters else ""
            unfit.append(f"{name} {tuple(value.shape)}{has}")
    if unfit:
        more = f" and {len(unfit) - 5} more" if len(unfit) > 5 else ""
        raise InputError(
            f"importance_path={str(path)!r} with {'; '.join(unfit[:5])}{more}",
            f"names and shapes of this module, such as {', '.join(list(parameters)[:3])}; shapes may have grown",
            "compute the importance on the module that is trained: parameters go by their names in it",
        )
    return importance, anchor
