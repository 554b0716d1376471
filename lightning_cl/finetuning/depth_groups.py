"""A model in groups from input to output."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_cl.errors import InputError
from lightning_cl.finetuning._beside_base import beside_base
from lightning_cl.finetuning._depth_head import split_head
from lightning_cl.finetuning._depth_order import in_forward_order
from lightning_cl.finetuning._depth_pieces import Piece, pieces_of
from lightning_cl.finetuning._depth_stages import stages_of


@dataclass(frozen=True)
class DepthGroup:
    """Part of a model at a certain depth.

    Args:
        name: ``"stem"``, ``"stage1"`` and so on, ``"head"``.
        modules: Qualified names of whole modules; parameters that stand beside them (a ViT's ``class_token``) are in
            ``parameters`` only.
        parameters: Every parameter's name, as in ``named_parameters()``.
        size: How many numbers these parameters hold.
    """

    name: str
    modules: tuple[str, ...]
    parameters: tuple[str, ...]
    size: int = 0


def depth_groups(module: nn.Module, *, max_groups: int | None = 8, example: Any = None) -> list[DepthGroup]:
    """A model's parameters in groups from input to output: stem, stages, head.

    Works on any module, wrapped in a LightningModule or not, and needs no attribute of a certain name. Every parameter
    is in exactly one group; a tied one, by identity, in the first that uses it. Repeated blocks (a BasicBlock, an
    encoder layer) are whole: no group has a part of one.

    The order is that of definition, which is the order of use in torchvision, timm and transformers; ``example`` gives
    the true one of any other model. The **head** is what is called ``head``, ``heads``, ``classifier``, ``fc``,
    ``score`` or so, outermost, else the last Linear layer behind all blocks; norms and Linear layers in the same part
    belong to it, as long as they are not most of the model. What stands before the first block is the **stem**. The
    **stages** are the lists that hold the blocks (``layer1`` to ``layer4``), with what leads to them. Where there are
    more than fit, neighbours are merged so that the numbers of blocks are balanced; where all blocks are in one or two
    lists, these are cut into balanced stages. In a model without blocks each layer with a weight matrix counts as one.
    A model with a single layer has a head only; one that ends in a block has no head.

    Args:
        module: The model.
        max_groups: How many groups at most, >= 3; None for one group for each block.
        example: Input of ``module``'s ``forward``: a tensor, a tuple of arguments, or a dict of keywords. It is run
            once in eval mode without gradients.

    Raises:
        InputError: For a module without parameters, ``max_groups`` < 3, or an example that forward does not take.

    Example:
        >>> layers = [nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)]
        >>> [(group.name, group.modules) for group in depth_groups(nn.Sequential(*layers))]
        [('stem', ('0',)), ('stage1', ('2',)), ('head', ('4',))]
    """
    if max_groups is not None and (not isinstance(max_groups, int) or max_groups < 3):
        raise InputError(f"max_groups={max_groups!r}", "an integer >= 3, or None", "leave it out for 8")
    names: dict[int, str] = {}
    for name, parameter in module.named_parameters():
        names.setdefault(id(parameter), name)
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if not names or lazy:
        given = f"parameters without a shape ({lazy[0]!r})" if lazy else "no parameters"
        raise InputError(f"a {type(module).__name__} with {given}", "a model that is built", "run it once on a batch")
    pieces = pieces_of(module)
    if example is not None:
        pieces = in_forward_order(module, pieces, example)
    pieces = _owners(pieces)
    body, head = split_head(pieces, beside_base(dict(module.named_modules())) or ())
    room = None if max_groups is None else max_groups - bool(head)
    parts = stages_of(body, room)
    called = ["stem", *(f"stage{i}" for i in range(1, len(parts)))][: len(parts)]
    grouped = [*zip(called, parts, strict=True), *([("head", head)] if head else [])]
    return _named(module, grouped, names)


def _owners(pieces: Sequence[Piece]) -> list[Piece]:
    """Each piece with the parameters that no earlier one has; those with none left are gone."""
    taken: set[int] = set()
    found = []
    for piece in pieces:
        own = tuple(p for p in piece.parameters if id(p) not in taken)
        taken.update(id(p) for p in own)
        if own:
            found.append(Piece(piece.name, piece.module, piece.parent, piece.kind, own))
    return found


def _named(root: nn.Module, grouped: Sequence[tuple[str, list[Piece]]], names: dict[int, str]) -> list[DepthGroup]:
    group_of = {id(p): name for name, pieces in grouped for piece in pieces for p in piece.parameters}
    held: dict[str, list[str]] = {name: [] for name, _ in grouped}
    places: dict[int, int] = {}
    for _, parameter in root.named_parameters(remove_duplicate=False):
        places[id(parameter)] = places.get(id(parameter), 0) + 1

    def descend(prefix: str, parent: nn.Module) -> None:
        for key, child in parent.named_children():
            ids = {id(p) for p in child.parameters()}
            # a tied parameter does not divide the module in which it is used again
            groups = {group_of[i] for i in ids if places[i] == 1} or {group_of[i] for i in ids}
            if len(groups) == 1:
                held[groups.pop()].append(prefix + key)
            elif groups:
                descend(f"{prefix}{key}.", child)

    descend("", root)
    order = {name: i for i, name in enumerate(names.values())}
    return [
        DepthGroup(
            name,
            tuple(held[name]),
            tuple(sorted((names[id(p)] for piece in pieces for p in piece.parameters), key=order.__getitem__)),
            sum(p.numel() for piece in pieces for p in piece.parameters),
        )
        for name, pieces in grouped
    ]
