"""Phases of a freezing schedule: plain values, and what they have to be."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_cl.errors import InputError

#: one step of a schedule: what is thawed, when, and with which learning rate
Phase = dict[str, Any]
TRIGGERS = ("epoch", "step", "fraction", "plateau")
_PLATEAU = {"monitor": None, "mode": "min", "patience": 3, "min_delta": 0.0}


def check_phases(phases: Sequence[Mapping[str, Any]]) -> list[Phase]:
    """The phases as plain dicts, each checked, with the defaults of a plateau filled in.

    A phase is ``{"thaw": selector, trigger: value, "lr": float}``. ``thaw`` is a selector of
    :func:`~lightning_cl.finetuning.select_parameters` or a list of them, and adds to what the phases before it thawed.
    The trigger is one of ``"epoch": int`` and ``"step": int`` (from 0, of each fit), ``"fraction": float`` (of the
    training, in [0, 1]) and ``"plateau"``, a mapping of ``monitor``, ``mode`` (``"min"`` or ``"max"``), ``patience``
    (in checks) and ``min_delta``; the first phase may have none, which means from the start. ``lr`` is optional: the
    learning rate of what this phase's selector means; without it that of the optimizer.

    Raises:
        InputError: For anything else.

    Example:
        >>> check_phases([{"thaw": "head"}, {"thaw": "all", "plateau": {"monitor": "val_loss"}}])[1]["plateau"]
        {'monitor': 'val_loss', 'mode': 'min', 'patience': 3, 'min_delta': 0.0}
    """
    if not isinstance(phases, Sequence) or isinstance(phases, str) or not phases:
        raise InputError(f"phases={phases!r}", "a list of phases", "try phases=[{thaw: head}, {thaw: all, epoch: 1}]")
    return [_checked(phase, i) for i, phase in enumerate(phases)]


def _checked(phase: Any, place: int) -> Phase:
    if not isinstance(phase, Mapping) or "thaw" not in phase:
        raise InputError(f"phase {place}: {phase!r}", "a mapping with 'thaw'", "try {thaw: head}")
    unknown = sorted(str(key) for key in phase.keys() - {"thaw", "lr", *TRIGGERS})
    if unknown:
        raise InputError(
            f"phase {place} with {', '.join(unknown)}", f"thaw, lr and one of {', '.join(TRIGGERS)}", "leave them out"
        )
    thaw = phase["thaw"]
    selectors = [thaw] if isinstance(thaw, str) else thaw
    if not isinstance(selectors, Sequence) or not selectors or not all(isinstance(s, str) and s for s in selectors):
        raise InputError(f"phase {place}: thaw={thaw!r}", "a selector, or a list of them", "try thaw: head")
    triggers = [key for key in TRIGGERS if phase.get(key) is not None]
    if len(triggers) > 1 or (place and not triggers):
        given = " and ".join(triggers) or "no trigger"
        raise InputError(f"phase {place} with {given}", f"one of {', '.join(TRIGGERS)}", f"try epoch: {max(1, place)}")
    lr = phase.get("lr")
    if lr is not None and not (is_number(lr) and lr > 0):
        raise InputError(f"phase {place}: lr={lr!r}", "a number > 0, or none", "leave it out for the optimizer's")
    found: Phase = {"thaw": thaw if isinstance(thaw, str) else list(thaw)}
    found |= {key: _trigger(place, key, phase[key]) for key in triggers}
    return found if lr is None else {**found, "lr": float(lr)}


def _trigger(place: int, kind: str, value: Any) -> Any:
    if kind == "plateau":
        return _plateau(place, value)
    if kind == "fraction":
        if not is_number(value) or not 0 <= value <= 1:
            raise InputError(f"phase {place}: fraction={value!r}", "a number in [0, 1]", "0.5 is half of the training")
        return float(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"phase {place}: {kind}={value!r}", "an integer >= 0", f"{kind}: 0 is the start of a fit")
    return value


def _plateau(place: int, value: Any) -> dict[str, Any]:
    where = f"phase {place}: plateau={value!r}"
    if not isinstance(value, Mapping) or not isinstance(value.get("monitor"), str) or value.keys() - _PLATEAU.keys():
        raise InputError(where, f"a mapping of {', '.join(_PLATEAU)}", "try {monitor: val_loss, patience: 3}")
    found = {**_PLATEAU, **value}
    patience, delta = found["patience"], found["min_delta"]
    if found["mode"] not in ("min", "max"):
        raise InputError(where, "mode 'min' or 'max'", "'min' is for losses")
    if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
        raise InputError(where, "a patience >= 1", "patience: 3 waits for three checks")
    if not is_number(delta) or delta < 0:
        raise InputError(where, "a min_delta >= 0", "leave it out for 0")
    return {**found, "min_delta": float(delta)}


def is_number(value: Any) -> bool:
    """Neither a bool nor NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
