"""What names a sample: an integer or a string, whatever it comes in."""

import operator
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from lightning_cl.errors import InputError

#: What an integer tensor can hold.
INT64 = range(-(2**63), 2**63)


def plain_ids(ids: Any) -> list[int | str]:
    """Ids as plain integers and strings; a single one is one id, a string is never taken apart.

    Args:
        ids: An integer or a string, or any number of them: a list, a tensor, an array of numpy.

    Raises:
        InputError: For anything else.

    Example:
        >>> import torch
        >>> plain_ids("anna"), plain_ids(3), plain_ids([torch.tensor(4), "5"])
        (['anna'], [3], [4, '5'])
    """
    if hasattr(ids, "tolist"):  # a tensor, an array, a number of numpy
        ids = (ids.flatten() if hasattr(ids, "flatten") else ids).tolist()
    if isinstance(ids, str | bytes | dict) or not isinstance(ids, Iterable):
        ids = [ids]
    return [_plain(each) for each in ids]


def _plain(value: Any) -> int | str:
    if isinstance(value, str):
        return str(value)
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError as error:
        raise InputError(
            f"id {value!r} of type {type(value).__name__!r}", "integers or strings", "give the ids that id_fn returns"
        ) from error


def column_of_ids(ids: Any) -> Tensor | list[int | str]:
    """Ids of a batch as a memory keeps them: an integer tensor on the CPU, or a list.

    Raises:
        InputError: For anything but integers and strings.
    """
    if not isinstance(ids, Tensor):
        return plain_ids(ids)
    if ids.is_floating_point() or ids.is_complex():
        raise InputError(f"ids of {ids.dtype}", "integers or strings", "give id_fn=lambda batch: batch['my_id'].long()")
    return ids.detach().cpu()
