"""Which saved tensor belongs to which tensor of a model."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate

from torch import Tensor

from lightning_cl.errors import InputError

Rename = Mapping[str, str] | Callable[[str], str | None]


def renamed(saved: Mapping[str, Tensor], rename: Rename | None) -> dict[str, Tensor]:
    """Tensors under other names.

    Args:
        saved: Tensors by name.
        rename: Regular expressions and what replaces what they match, one after the other; or a function of a name
            that gives another, or None to leave a tensor out.

    Raises:
        InputError: For an expression that is none, or two tensors of one name.

    Example:
        >>> list(renamed({"_fc.weight": Tensor()}, {r"^_fc\\.": "classifier."}))
        ['classifier.weight']
    """
    if not rename:
        return dict(saved)
    found: dict[str, Tensor] = {}
    for key, value in saved.items():
        new: str | None = key
        if callable(rename):
            new = rename(key)
        else:
            for pattern, replacement in rename.items():
                try:
                    new = re.sub(pattern, replacement, str(new))
                except (re.error, IndexError) as error:
                    given = f"rename {pattern!r}: {replacement!r} ({error})"
                    raise InputError(given, "a regular expression and its replacement", "see re.sub") from error
        if new is None:
            continue
        if new in found:
            raise InputError(f"rename that gives {new!r} twice", "a name of its own for each tensor", "be more precise")
        found[new] = value
    return found


def aligned(saved: Mapping[str, Tensor], own: Mapping[str, Tensor], prefix: str | None = None) -> dict[str, Tensor]:
    """Saved tensors under the model's names: one prefix is taken off, another put before, so that most fit.

    Names that fit no tensor of the model keep the saved name, all of them if not even half of them fit.

    Args:
        saved: Tensors by name.
        own: The model's.
        prefix: The prefix in ``saved``, where more than one would do.

    Raises:
        InputError: If two prefixes fit equally well, with different tensors.
    """
    if prefix is not None and not any(key.startswith(prefix) for key in saved):
        tops = sorted({key.partition(".")[0] for key in saved})[:8]
        raise InputError(f"prefix={prefix!r}", f"one that tensors begin with: {', '.join(tops)}", "or leave it out")
    best, score, rivals = {}, (0, 0), [""]
    for taken in _prefixes(saved) if prefix is None else [prefix]:
        for put in _prefixes(own):
            names = {name: key for key in saved if key.startswith(taken) and (name := put + key[len(taken) :]) in own}
            fit = sum(saved[key].shape == own[name].shape for name, key in names.items()), len(names)
            if fit > score:
                best, score, rivals = names, fit, [taken]
            elif fit == score and best and names.keys() == best.keys() and names != best:
                rivals.append(taken)
    if len(rivals) > 1:
        raise InputError(
            f"two sets of weights in one file, {rivals[0]!r} and {rivals[1]!r}",
            "one that fits the model",
            f"choose with prefix={rivals[0]!r}",
        )
    # fewer are chance: every network has a block with the names of another block
    if 2 * len(best) < min(len(saved), len(own)):
        return dict(saved)
    used = set(best.values())
    rest = {key: value for key, value in saved.items() if key not in used and key not in best}
    return {**{name: saved[key] for name, key in best.items()}, **rest}


def without(saved: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """The tensors under a prefix, without it; all of them where it is None."""
    if prefix is None:
        return dict(saved)
    return {key[len(prefix) :]: value for key, value in saved.items() if key.startswith(prefix)}


def _prefixes(tensors: Mapping[str, Tensor]) -> list[str]:
    """``""``, and what at least a tenth of the names begin with up to a dot, the shorter first."""
    count = Counter(prefix for key in tensors for prefix in accumulate(f"{part}." for part in key.split(".")[:-1]))
    common = [prefix for prefix, times in count.items() if 10 * times >= len(tensors)]
    return ["", *sorted(common, key=lambda prefix: (prefix.count("."), prefix))]
