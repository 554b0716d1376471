"""Which part of a model is its head."""

import re
from collections.abc import Sequence

from torch import nn

from lightning_cl.finetuning._depth_pieces import Piece, is_linear

_NAMES = re.compile(r"(head|heads|classifier|classification_head|classif|fc|score|last_linear)(_\w+)?")
_ALWAYS_WHOLE = re.compile(r"(head|heads|classification_head)(_\w+)?")


def split_head(pieces: Sequence[Piece], beside: Sequence[str] = ()) -> tuple[list[Piece], list[Piece]]:
    """The pieces before the head, and those of the head; numbers that belong to no layer (a temperature) go with it.

    Args:
        pieces: Of a module.
        beside: Paths of what it has beside a transformers base model, of which the head may be a part.
    """
    chosen = _with_beside(_called_head(pieces) or _last_linear(pieces), pieces, beside)
    numbers = [p for p in pieces if p.kind == "parameter" and all(q.numel() == 1 for q in p.parameters)]
    if not chosen:
        return list(pieces), []
    head = {id(piece) for piece in [*chosen, *numbers]}
    return [p for p in pieces if id(p) not in head], [p for p in pieces if id(p) in head]


def _with_beside(head: Sequence[Piece], pieces: Sequence[Piece], beside: Sequence[str]) -> list[Piece]:
    """The head, with all that is beside a transformers base model if it is a part of that: it is new together.

    A plain base model leaves DistilBERT's ``pre_classifier`` at random, too.
    """
    members = [p for p in pieces if any(p.name == path or p.name.startswith(f"{path}.") for path in beside)]
    inside = {id(p) for p in members}
    named = [p for p in head if p.kind != "parameter"]
    if not named or not all(id(p) in inside for p in named) or not _may_be_head(members):
        return list(head)
    inside |= {id(p) for p in head}
    return [p for p in pieces if id(p) in inside]


def _called_head(pieces: Sequence[Piece]) -> list[Piece]:
    """What is called so and can be one, outermost."""
    found: dict[str, list[Piece]] = {}
    for piece in pieces:
        parts = piece.name.split(".")
        depth = next((i for i, part in enumerate(parts) if _NAMES.fullmatch(part)), None)
        if depth is not None and piece.kind != "parameter":
            found.setdefault(".".join(parts[: depth + 1]), []).append(piece)
    found = {name: members for name, members in found.items() if _may_be_head(members)}
    if not found:
        return []
    depth = min(name.count(".") for name in found)
    chosen: list[Piece] = []
    for name, members in found.items():
        if name.count(".") == depth:
            whole = _ALWAYS_WHOLE.fullmatch(name.rpartition(".")[2]) or not _is_most(members, pieces)
            chosen += members if whole else [[p for p in members if _classifies(p)][-1]]
    return chosen if len(chosen) < len(pieces) else []


def _last_linear(pieces: Sequence[Piece]) -> list[Piece]:
    """The last Linear layer, else the last of any kind, behind all blocks; with what surrounds it."""
    last_block = max((i for i, piece in enumerate(pieces) if piece.kind == "block"), default=-1)
    behind = [(i, piece) for i, piece in enumerate(pieces) if i > last_block and piece.weighs]
    candidates = [(i, piece) for i, piece in behind if piece.classifies] or behind
    if not candidates:
        return []
    at, last = candidates[-1]
    inside = [last]
    parent = last.parent
    while parent and last.classifies:
        members = [p for p in pieces if p.name.startswith(f"{parent}.")]
        if not _may_be_head(members) or _is_most(members, pieces):
            break
        inside, parent = members, parent.rpartition(".")[0]
    first = min(at, *(pieces.index(p) for p in inside)) if len(inside) > 1 else at
    return list(pieces[first:])


def _may_be_head(members: Sequence[Piece]) -> bool:
    """Linear layers and norms only."""
    return any(_classifies(p) for p in members) and all(_classifies(p) or not p.weighs for p in members)


def _classifies(piece: Piece) -> bool:
    """Whether it may be a classifier; two heads of a class (LeViT's) look like blocks, and are none by their name."""
    if piece.classifies or piece.module is None or not _NAMES.fullmatch(piece.name.rpartition(".")[2]):
        return piece.classifies
    inside = set().union(*(set(part.parameters()) for part in piece.module.modules() if is_linear(part)))
    return bool(inside) and all(p.ndim < 2 or p in inside for p in piece.parameters)


def _is_most(members: Sequence[Piece], pieces: Sequence[Piece]) -> bool:
    """Whether they have more than half of all parameters, or stand at the input."""
    size = {id(p): sum(q.numel() for q in p.parameters) for p in pieces}
    return members[0] is pieces[0] or 2 * sum(size[id(p)] for p in members) > sum(size.values())


def head_layers(module: nn.Module) -> list[str]:
    """Names of the Linear layers and cosine heads of a module."""
    return [name for name, part in module.named_modules() if is_linear(part)]
