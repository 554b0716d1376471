"""Which parameters weight decay leaves alone."""

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.selectors import select_parameters

NO_DECAY = ("norm", "bias", "vector", "token")


def without_decay(module: nn.Module, no_decay: Sequence[str]) -> set[int]:
    """Ids of the parameters that these words or selectors mean; see :func:`.parameter_groups`.

    Raises:
        InputError: For another word, or a selector that matches nothing.
    """
    if isinstance(no_decay, str) or not isinstance(no_decay, Sequence):
        raise InputError(f"no_decay={no_decay!r}", "a list", f"leave it out for {list(NO_DECAY)}")
    found: set[int] = set()
    for word in no_decay:
        if isinstance(word, str) and word.startswith(("re:", "type:")):
            found |= {id(p) for _, p in select_parameters(module, word)}
        elif word not in NO_DECAY:
            expected = f"{', '.join(NO_DECAY)}, re:PATTERN or type:Class"
            raise InputError(f"no_decay={word!r}", expected, "try type:Embedding")
    for part in module.modules():
        found |= {id(p) for p in _spared_in(part, no_decay)}
    return found


def _spared_in(part: nn.Module, words: Sequence[str]) -> list[nn.Parameter]:
    """What a module holds itself, without those below it, and what it names as timm's models do."""
    own = list(part.named_parameters(recurse=False))
    found = [p for _, p in own] if "norm" in words and is_norm(part) else []
    if "bias" in words:
        found += [p for name, p in own if re.fullmatch(r"(\w+_)?bias(_\w+)?", name) and p.ndim <= 1]
    if "vector" in words:
        found += [p for _, p in own if p.ndim <= 1]
    if "token" in words:
        holds_others = next(part.children(), None) is not None
        found += [p for _, p in own if holds_others and p.ndim > 1 and p.shape[0] == 1]
        says: Any = getattr(part, "no_weight_decay", None)
        named = set(says()) if callable(says) else set()
        found += [p for name, p in part.named_parameters() if name in named]
    return found


def is_norm(module: nn.Module) -> bool:
    """Whether a module normalises, by its class or that class's name.

    Example:
        >>> is_norm(nn.LayerNorm(4)), is_norm(nn.BatchNorm2d(4)), is_norm(nn.Linear(4, 4))
        (True, True, False)
    """
    return re.search(r"Norm(?![a-z])", type(module).__name__) is not None
