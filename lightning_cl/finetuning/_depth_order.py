"""The order in which a forward pass uses the parts of a module."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.finetuning._depth_pieces import Piece


def in_forward_order(root: nn.Module, pieces: Sequence[Piece], example: Any) -> list[Piece]:
    """The pieces in the order of their first call; one that is not called stays behind what is defined before it.

    A parameter goes before the first call within the module that holds it.

    Raises:
        InputError: If forward does not take the example.
    """
    calls = _calls(root, example)
    first: dict[str, int] = {}
    for name, place in calls.items():
        for parent in _ancestors(name):
            first[parent] = min(first.get(parent, place), place)
    keyed: list[tuple[tuple[int, int], Piece]] = []
    place = -1
    for piece in pieces:
        if piece.module is None:
            keyed.append(((first.get(piece.parent, place), 0), piece))
            continue
        place = calls.get(piece.name, first.get(piece.name, place))
        keyed.append(((place, 1), piece))
    return [piece for _, piece in sorted(keyed, key=lambda entry: entry[0])]


def _calls(root: nn.Module, example: Any) -> dict[str, int]:
    """When each module with parameters of its own, or none below it, was first called."""
    order: dict[str, int] = {}

    def watch(name: str) -> Any:
        def note(*_: Any) -> None:  # what a hook returns would be the input
            order.setdefault(name, len(order))

        return note

    handles = [part.register_forward_pre_hook(watch(name)) for name, part in root.named_modules() if name]
    try:
        with _compat.evaluating(root), torch.no_grad():
            if isinstance(example, Mapping):
                root(**example)
            else:
                root(*example) if isinstance(example, tuple | list) else root(example)
    except Exception as error:
        raise InputError(
            f"an example that {type(root).__name__}.forward does not take ({type(error).__name__}: {error})",
            "its input: a tensor, a tuple of arguments, or a dict of keywords",
            "leave the labels of a batch out",
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return order


def _ancestors(name: str) -> list[str]:
    parts = name.split(".")
    return ["", *(".".join(parts[:i]) for i in range(1, len(parts)))]
