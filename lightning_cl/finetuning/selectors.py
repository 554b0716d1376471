"""Which parameters the words of a freezing schedule mean."""

import difflib
import re
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.depth_groups import DepthGroup, depth_groups

Selector = str | Sequence[str]
Named = list[tuple[str, nn.Parameter]]


def select_parameters(module: nn.Module, selector: Selector, groups: Sequence[DepthGroup] | None = None) -> Named:
    """The parameters that a selector means, in the order of ``named_parameters()``, each once, by identity.

    Two parameters of equal values are two; a tied one has its first name.

    Args:
        module: The model.
        selector: One of these, or a list of them, which means all that any of them does: the name of a depth group;
            ``"all"``; ``"all_but_head"``; ``"re:PATTERN"``, searched for in the names of modules; ``"type:Class"``, a
            class of modules or of their base, with or without its package. The last two mean whole modules: all
            parameters below one that matches. A parameter that stands beside modules, such as a ViT's ``cls_token``,
            is matched by its own name.
        groups: The model's depth groups; found by :func:`~lightning_cl.depth_groups` if needed.

    Raises:
        InputError: For a selector that matches nothing, or is none.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        >>> [name for name, _ in select_parameters(model, ["head", "type:BatchNorm1d"])]
        ['1.weight', '1.bias', '2.weight', '2.bias']
    """
    one = [selector] if isinstance(selector, str) else selector
    if not isinstance(one, Sequence) or not one or not all(isinstance(text, str) for text in one):
        raise InputError(f"thaw={selector!r}", "a selector, or a list of them", "try thaw=head or thaw=all")
    found: set[int] = set()
    for text in one:
        found |= _matches(module, text, groups)
    return [(name, p) for name, p in module.named_parameters() if id(p) in found]


def _matches(module: nn.Module, selector: str, groups: Sequence[DepthGroup] | None) -> set[int]:
    if selector == "all":
        return {id(p) for p in module.parameters()}
    kind, _, text = selector.partition(":")
    if kind in ("re", "type") and text:
        found = _of_modules(module, _by_name(text, selector) if kind == "re" else _by_type(text))
        if not found:
            raise _nothing(module, selector, kind, text)
        return found
    groups = depth_groups(module) if groups is None else groups
    ids = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    known = {group.name: {ids[name] for name in group.parameters if name in ids} for group in groups}
    if selector == "all_but_head":
        return set().union(*(known[name] for name in known if name != head_of(groups)))
    if selector not in known:
        close = difflib.get_close_matches(selector, [*known, "all", "all_but_head"], n=1)
        near = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(
            f"selector {selector!r}",
            f"one of {', '.join(known)}, all, all_but_head, re:PATTERN, type:Class",
            f"{near}re:{selector} would match names of modules",
        )
    return known[selector]


def _of_modules(module: nn.Module, matches: Callable[[str, Any], bool]) -> set[int]:
    """Ids of the parameters of whole modules, and of parameters beside modules, of which this is true."""
    found: set[int] = set()
    for name, part in module.named_modules(remove_duplicate=False):
        if name and matches(name, part):
            found.update(id(p) for p in part.parameters())
        if next(part.children(), None) is not None:
            prefix = f"{name}." if name else ""
            direct = part.named_parameters(recurse=False)
            found.update(id(p) for key, p in direct if matches(prefix + key, None))
    return found


def _by_name(pattern: str, selector: str) -> Callable[[str, Any], bool]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"selector {selector!r} ({error})", "re: and a regular expression", "try 're:^backbone\\.layer4'"
        ) from error
    return lambda name, _: compiled.search(name) is not None


def _by_type(wanted: str) -> Callable[[str, Any], bool]:
    def matches(_: str, part: Any) -> bool:
        # every module is an nn.Module, and so is the part that was asked for
        kinds = [k for k in type(part).__mro__ if issubclass(k, nn.Module) and k is not nn.Module]
        return any(wanted in (k.__name__, f"{k.__module__}.{k.__qualname__}") for k in kinds)

    return matches


def _nothing(module: nn.Module, selector: str, kind: str, text: str) -> InputError:
    if kind == "type":
        known = sorted({type(part).__name__ for part in module.modules() if any(True for _ in part.parameters())})
        expected = "the class of a module with parameters"
    else:
        known = [name for name, part in module.named_modules() if name and any(True for _ in part.parameters())]
        expected = "a regular expression that is found in the name of a module with parameters"
    close = difflib.get_close_matches(text.strip("^$"), known, n=3, cutoff=0.4) or known[:5]
    return InputError(f"selector {selector!r}, which matches nothing", expected, f"there are {', '.join(close)}, ...")


def head_of(groups: Sequence[DepthGroup]) -> str:
    """Name of the head; of the last group where a model has none."""
    return groups[-1].name
