"""Errors of the pure functions, as people see them."""

import contextlib
from collections.abc import Iterator

from lightning_cl.errors import InputError


@contextlib.contextmanager
def input_errors() -> Iterator[None]:
    """Turn a ``ValueError`` with the three parts inside the block into an ``InputError``."""
    try:
        yield
    except InputError:
        raise
    except ValueError as error:
        given, expected, rest = str(error).partition("; expected ")
        wanted, hint, todo = rest.partition(". HINT: ")
        if not expected or not hint:
            raise
        raise InputError(given, wanted, todo) from error
