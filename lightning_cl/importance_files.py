"""Importances as files: computed in one place, used in another, added up."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.files import load_state, save_state
from lightning_cl.functional.penalty import merge_average, merge_offline, merge_online, pad_to

HOW = ("sum", "online", "average")
_WRITTEN = "a file written by `lightning-cl importance compute` or by a method's state_path"


@dataclass(frozen=True)
class ImportanceFile:
    r"""A quadratic penalty without its strength: :math:`\frac{1}{2}\sum_i A_i\,(\theta_i-\theta^*_i)^2`.

    Args:
        importance: Parameter name to A, non-negative, of the parameter's shape: a mean over samples.
        anchor: Parameter name to the parameters that are pulled towards; the names and shapes of ``importance``.
        info: Where it comes from, in plain values (``kind``, ``labels``, ``n_samples``, ``lightning_cl``, ...).
    """

    importance: dict[str, Tensor]
    anchor: dict[str, Tensor]
    info: dict[str, Any] = field(default_factory=dict)


def save_importance(
    path: str | os.PathLike[str],
    importance: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    info: Mapping[str, Any] | None = None,
) -> None:
    """Write an importance and its anchor, whole or not at all; read it with :func:`load_importance`.

    Args:
        path: The file; its folder is made if it does not exist.
        importance, anchor, info: See :class:`ImportanceFile`. The version of lightning_cl is added to ``info``.

    Raises:
        InputError: If names or shapes of the two differ, there is nothing in them, a value is not finite or an
            importance negative (named by parameter), all importances are zero, or ``info`` is not plain values.
    """
    from lightning_cl import __version__

    info = {"lightning_cl": __version__, **(info or {})}
    if not _is_plain(info):
        raise InputError(f"info={info!r}", "numbers, strings and lists of them", "say in words where it comes from")
    check_importance(importance, anchor)
    tensors = [{name: value.detach().cpu() for name, value in part.items()} for part in (importance, anchor)]
    save_state(path, {"version": 1, "importance": tensors[0], "anchor": tensors[1], "info": info})


def load_importance(path: str | os.PathLike[str]) -> ImportanceFile:
    """Read an importance on the CPU; nothing in the file is executed.

    Three kinds of file hold one: what :func:`save_importance` wrote, the ``state_path`` of a method such as
    :class:`~lightning_cl.EWC`, and the ``*.learner.ckpt`` of a run folder, if one of its callbacks has an importance.

    Args:
        path: The file.

    Raises:
        InputError: If it cannot be read, holds something else, or its tensors are not fit (see
            :func:`save_importance`).
    """
    path = Path(path)
    try:
        content = load_state(path)
    except FileNotFoundError as error:
        raise InputError(f"no such file: {str(path)!r}", _WRITTEN, "check the path") from error
    except Exception as error:
        raise InputError(f"{str(path)!r} cannot be read ({type(error).__name__})", _WRITTEN, "write it anew") from error
    states = content.get("callbacks") if isinstance(content, dict) else None
    if isinstance(states, dict):
        holders = {key: state for key, state in states.items() if _holds_one(state)}
        if len(holders) > 1:
            hint = "save one of them by itself: lightning_cl.importance_files.save_importance"
            raise InputError(f"importances of {', '.join(holders)} in {str(path)!r}", "one", hint)
        found = [{"info": {"kind": key}, **state} for key, state in holders.items()]
        content = found[0] if found else {}
    if not _holds_one(content) or content.get("version") != 1:
        given = f"no importance in {str(path)!r}" if not _holds_one(content) else f"version {content.get('version')!r}"
        raise InputError(given, _WRITTEN, "lightning-cl importance compute OUT writes one")
    check_importance(content["importance"], content["anchor"], where=f" in {str(path)!r}")
    info = content.get("info")
    if info is None:
        info = {"kind": "state of a method"}
    return ImportanceFile(dict(content["importance"]), dict(content["anchor"]), dict(info))


def merge_importances(
    files: Sequence[str | os.PathLike[str] | ImportanceFile], how: str = "sum", gamma: float | None = None
) -> ImportanceFile:
    """Several importances as one.

    ``sum`` is exact: the one penalty has the gradient of all penalties together (see
    :func:`lightning_cl.functional.merge_offline`), so the order does not matter but for rounding. A parameter that
    only some have keeps what they say of it. One that has grown (new head rows) counts as 0 where it did not exist.

    Args:
        files: Two or more, in the order in which they were learnt.
        how: ``sum``: importances are added, anchors are the means weighted by importance. ``online``: A = gamma A + F,
            anchors of the newest that has the parameter. ``average``: A = gamma A + (1 - gamma) F, anchors likewise.
        gamma: Of ``online`` (default 1) and ``average`` (default (k-1)/k at the k-th file: the plain mean).

    Raises:
        InputError: For fewer than two, another ``how``, a gamma outside [0, 1], or shapes of which neither is the
            other, grown.
    """
    if len(files) < 2:
        raise InputError(f"{len(files)} importance file(s) to merge", "two or more", "give their paths")
    if how not in HOW:
        raise InputError(f"how={how!r}", f"one of {', '.join(HOW)}", "sum is exact for penalties of separate tasks")
    if gamma is not None and (how == "sum" or not 0 <= gamma <= 1):
        raise InputError(f"gamma={gamma!r} with how={how!r}", "a number in [0, 1], not with sum", "leave it out")
    first, *others = [file if isinstance(file, ImportanceFile) else load_importance(file) for file in files]
    importance, anchor = first.importance, first.anchor
    for k, other in enumerate(others, 2):
        weight = gamma if gamma is not None else (k - 1) / k if how == "average" else 1.0
        importance, anchor = _merge_two(importance, anchor, other, how, weight)
    info = {"kind": "merged", "how": how, "of": [first.info, *(other.info for other in others)]}
    return ImportanceFile(importance, anchor, info if gamma is None else {**info, "gamma": gamma})


def _merge_two(
    importance: dict[str, Tensor], anchor: dict[str, Tensor], other: ImportanceFile, how: str, weight: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    new, centre = dict(other.importance), dict(other.anchor)
    for name in new.keys() & importance.keys():
        new[name], centre[name] = _grown(name, new[name], centre[name], anchor[name])
    if how == "sum":
        return merge_offline(importance, anchor, new, centre)
    merge = merge_average if how == "average" else merge_online
    # what only one of the two has is not faded: the other says nothing about it
    old = [{name: value for name, value in part.items() if name in new} for part in (importance, anchor)]
    both = {name: value for name, value in new.items() if name in importance}
    weights, centres = merge(old[0], old[1], both, centre, weight)
    return {**importance, **new, **weights}, {**anchor, **centre, **centres}


def _grown(name: str, importance: Tensor, anchor: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The newer of two pairs, not smaller than the older: what it does not have is 0, around the older's anchor."""
    old, new = tuple(known.shape), tuple(importance.shape)
    if len(old) == len(new) and all(a <= b for a, b in zip(old, new, strict=True)):
        return importance, anchor
    if len(old) != len(new) or any(a < b for a, b in zip(old, new, strict=True)):
        raise InputError(
            f"{name!r} of shapes {old} and {new}", "equal shapes, or one that is the other, grown", "merge what fits"
        )
    centre = known.to(torch.promote_types(known.dtype, anchor.dtype), copy=True)
    centre[tuple(slice(size) for size in new)] = anchor.to(centre.dtype)
    return pad_to(importance, old), centre


def check_importance(importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor], where: str = "") -> None:
    """Refuse what cannot be a penalty.

    Raises:
        InputError: See :func:`save_importance`.
    """
    if not importance or importance.keys() != anchor.keys():
        lone = sorted(importance.keys() ^ anchor.keys())
        given = f"importance and anchor that do not share {', '.join(lone)}{where}" if lone else f"no importance{where}"
        raise InputError(given, "both for each parameter", "save importance and anchor of the same parameters")
    for name, value in importance.items():
        if value.shape != anchor[name].shape:
            given = f"{name!r} with importance {tuple(value.shape)} and anchor {tuple(anchor[name].shape)}{where}"
            raise InputError(given, "equal shapes", "save importance and anchor of the same module")
        for part, tensor in (("importance", value), ("anchor", anchor[name])):
            if not bool(tensor.isfinite().all()):
                hint = "look for NaN or inf in the weights (a training that diverged) or in the data"
                raise InputError(f"{part} of {name!r}{where} is not finite", "finite numbers", hint)
        if bool((value < 0).any()):
            raise InputError(f"importance of {name!r}{where} is negative", "numbers >= 0", "clamp it: .clamp(min=0)")
    if not any(bool(value.any()) for value in importance.values()):
        hint = "the gradients vanish: check data, labels and weights (a saturated output has none in fp32)"
        raise InputError(f"importance that is 0 for every parameter{where}", "some that is not", hint)


def _holds_one(state: Any) -> bool:
    return isinstance(state, dict) and all(
        isinstance(state.get(key), dict) and all(isinstance(value, Tensor) for value in state[key].values())
        for key in ("importance", "anchor")
    )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, float, bool)
