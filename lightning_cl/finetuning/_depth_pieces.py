"""A module taken apart into the pieces that are never divided."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@dataclass(frozen=True)
class Piece:
    """A whole module, or a parameter of a module that is itself taken apart.

    Args:
        name: Qualified name.
        module: The module; None for a parameter.
        parent: Name of the module that holds it.
        kind: A repeated ``"block"`` (BasicBlock, encoder layer); ``"soft"``, a repeated Sequential that holds none
            (conv, norm, activation); a single ``"layer"``; or a ``"parameter"``.
        parameters: Its parameters.
    """

    name: str
    module: nn.Module | None
    parent: str
    kind: Literal["block", "soft", "layer", "parameter"]
    parameters: tuple[nn.Parameter, ...]

    @property
    def weighs(self) -> bool:
        """Whether it computes something of its own, as norms and activations do not."""
        if self.module is None:
            return False
        return self.kind != "layer" or any(p.ndim > 1 for p in self.module.parameters())

    @property
    def classifies(self) -> bool:
        """Whether it may be a classifier: a Linear layer, or a head that compares directions."""
        if self.module is None or self.kind == "block":
            return False
        return any(is_linear(part) for part in self.module.modules())


def is_linear(module: Any) -> bool:
    """A Linear layer or a cosine head, which is none."""
    return isinstance(module, nn.Linear) or hasattr(module, "similarities")


def pieces_of(root: nn.Module) -> list[Piece]:
    """The pieces of a module in the order of definition; modules without parameters are in none."""
    if _is_single(root):
        return [Piece("", root, "", "layer", tuple(root.parameters()))]
    counts = Counter(type(part) for part in root.modules() if _is_composite(part))
    return list(_walk("", root, counts, _size(root)))


def _walk(name: str, module: nn.Module, counts: Counter[type], size: int, in_stage: bool = False) -> Iterator[Piece]:
    prefix = f"{name}." if name else ""
    for key, parameter in module.named_parameters(recurse=False):
        yield Piece(prefix + key, None, name, "parameter", (parameter,))
    for key, child in module.named_children():
        held = tuple(child.parameters())
        if not held:
            continue
        stage = not in_stage and _is_stage(child, module, counts)
        kind = None if stage else _kind(child, module, counts, size)
        if kind is None:
            yield from _walk(prefix + key, child, counts, size, in_stage or stage)
        else:
            yield Piece(prefix + key, child, name, kind, held)


def _is_stage(child: nn.Module, parent: nn.Module, counts: Counter[type]) -> bool:
    """One of a few alike in a list, with a list of blocks of its own; there are no stages in stages."""
    if not isinstance(parent, LISTS) or isinstance(child, LISTS) or not 1 < counts[type(child)] <= 8:
        return False
    return any(_is_list_of_blocks(part, nothing_else=True) for part in child.children())


def _kind(child: nn.Module, parent: nn.Module, counts: Counter[type], size: int) -> Any:
    """What a module is as a piece; None if it is taken apart."""
    if _is_single(child):
        return "layer"
    repeated = counts[type(child)] > 1
    if isinstance(child, LISTS):
        is_own_class = isinstance(child, nn.Sequential) and type(child) is not nn.Sequential
        return "soft" if is_own_class and repeated and not _holds_blocks(child, counts) else None
    if repeated and isinstance(parent, LISTS):
        return "block"
    if repeated:  # no element of a list, it may be a network of its own: a student and its teacher
        return None if counts[type(child)] <= 3 and _holds_list_of_blocks(child) else "block"
    # a single element of a list is a block of its own kind, unless it is the network
    if isinstance(parent, LISTS) and not _holds_list_of_blocks(child):
        small = 2 * _size(child) <= size and any(n > 1 and not issubclass(k, LISTS) for k, n in counts.items())
        return "block" if small or isinstance(parent, nn.ModuleList) else None
    return None


def _size(module: nn.Module) -> int:
    return sum(0 if is_lazy(p) else p.numel() for p in module.parameters())


def _is_single(module: nn.Module) -> bool:
    """A layer: nothing below it has parameters, or its parameters belong together."""
    if isinstance(module, nn.MultiheadAttention) or parametrize.is_parametrized(module):
        return True
    return not any(True for child in module.children() for _ in child.parameters())


def _is_composite(module: nn.Module) -> bool:
    return not _is_single(module) and (not isinstance(module, LISTS) or type(module) not in LISTS)


def _holds_blocks(module: nn.Module, counts: Counter[type]) -> bool:
    return any(
        counts[type(part)] > 1 and not isinstance(part, LISTS) for part in module.modules() if part is not module
    )


def _holds_list_of_blocks(module: nn.Module) -> bool:
    return any(_is_list_of_blocks(part) for part in module.modules())


def _is_list_of_blocks(module: nn.Module, *, nothing_else: bool = False) -> bool:
    if not isinstance(module, LISTS):
        return False
    children = [child for child in module.children() if _size(child)]
    kinds = Counter(type(m) for m in children if _is_composite(m) and not isinstance(m, LISTS))
    wanted = len(children) if nothing_else else 2
    return any(count >= max(2, wanted) for count in kinds.values())
