"""Phases of a freezing schedule: what each thaws, when, and with which learning rate."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_cl.errors import InputError

TRIGGERS = ("epoch", "step", "fraction", "plateau")
_EXAMPLE = 'phases=[{"thaw": "head"}, {"thaw": "all", "epoch": 2}]'


@dataclass(frozen=True)
class Phase:
    """One phase. ``value`` is a number, the settings of a plateau, or None if it is thawed from the start.

    >>> parse([{"thaw": "head"}, {"thaw": "all", "fraction": 0.25}])[1].when
    'fraction 0.25'
    """

    thaw: str | tuple[str, ...]
    trigger: str | None = None
    value: Any = None
    lr: float | None = None

    @property
    def when(self) -> str:
        """For people."""
        if self.trigger is None:
            return "from the start"
        if self.trigger != "plateau":
            return f"{self.trigger} {self.value:g}"
        return f"plateau of {self.value['monitor']} ({self.value['mode']}, patience {self.value['patience']})"

    @property
    def what(self) -> str:
        """For people."""
        return self.thaw if isinstance(self.thaw, str) else ", ".join(self.thaw)


def parse(phases: Any) -> list[Phase]:
    """Phases from dictionaries.

    Raises:
        InputError: For an unknown key, a missing or doubled trigger, a value out of its range, or triggers of one kind
            that do not come one after the other.
    """
    if not isinstance(phases, Sequence) or isinstance(phases, str) or not phases:
        raise InputError(f"phases={phases!r}", "a list of at least one phase", _EXAMPLE)
    parsed = [_phase(entry, f"phases[{i}]") for i, entry in enumerate(phases)]
    if parsed[0].value == 0:
        parsed[0] = replace(parsed[0], trigger=None, value=None)
    if parsed[0].trigger is not None:
        raise InputError(
            f"phases[0] thaws {parsed[0].what} at {parsed[0].when}",
            "a first phase without a trigger: something has to be trained from the start",
            _EXAMPLE,
        )
    latest: dict[str, float] = {}
    for i, phase in enumerate(parsed[1:], 1):
        if phase.trigger is None:
            raise InputError(
                f"phases[{i}] has no trigger", f"one of {', '.join(TRIGGERS)}", "name all that is to be trained from "
                "the start in the first phase",
            )  # fmt: skip
        if phase.trigger != "plateau":
            if phase.value < latest.get(phase.trigger, 0):
                raise InputError(
                    f"phases[{i}] thaws at {phase.when}, after a phase of {phase.trigger} {latest[phase.trigger]:g}",
                    "phases in the order in which they thaw",
                    "sort them",
                )
            latest[phase.trigger] = phase.value
    return parsed


def _phase(entry: Any, where: str) -> Phase:
    if not isinstance(entry, Mapping) or "thaw" not in entry:
        raise InputError(f"{where}={entry!r}", "a dictionary with 'thaw'", _EXAMPLE)
    unknown = sorted(map(str, entry.keys() - {"thaw", "lr", *TRIGGERS}))
    if unknown:
        allowed = "thaw, lr, " + ", ".join(TRIGGERS)
        raise InputError(f"{where} with {', '.join(unknown)}", f"keys out of {allowed}", _EXAMPLE)
    triggers = [name for name in TRIGGERS if entry.get(name) is not None]
    if len(triggers) > 1:
        raise InputError(f"{where} with {' and '.join(triggers)}", "one trigger", "make two phases of it")
    trigger = triggers[0] if triggers else None
    value = _value(trigger, entry[trigger], where) if trigger is not None else None
    return Phase(_selector(entry["thaw"], where), trigger, value, _lr(entry.get("lr"), where))


def _selector(thaw: Any, where: str) -> str | tuple[str, ...]:
    parts = [thaw] if isinstance(thaw, str) else thaw
    if not isinstance(parts, Sequence) or not parts or not all(isinstance(p, str) and p for p in parts):
        raise InputError(
            f"{where}: thaw={thaw!r}",
            "a name or a list of names",
            "'head', 'all', 'all_but_head', a group such as 'stage3', 're:REGEX', 'type:BatchNorm2d'",
        )
    return thaw if isinstance(thaw, str) else tuple(parts)


def _lr(lr: Any, where: str) -> float | None:
    if lr is None:
        return None
    if not _number(lr) or not 0 < lr < math.inf:
        raise InputError(f"{where}: lr={lr!r}", "a number > 0", "leave it out for the optimizer's own")
    return float(lr)


def _value(trigger: str, value: Any, where: str) -> Any:
    if trigger == "plateau":
        return _plateau({"monitor": value} if isinstance(value, str) else value, where)
    if trigger == "fraction":
        if not _number(value) or not 0 <= value < 1:
            raise InputError(f"{where}: fraction={value!r}", "a number in [0, 1)", "fraction: 0.5 is half-way")
        return float(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InputError(f"{where}: {trigger}={value!r}", "an integer >= 0", f"{trigger}: 2")
    return value


def _plateau(given: Any, where: str) -> dict[str, Any]:
    defaults = {"monitor": None, "mode": "min", "patience": 3, "min_delta": 0.0}
    example = "plateau: {monitor: val_loss, mode: min, patience: 3}"
    if not isinstance(given, Mapping) or given.keys() - defaults.keys():
        raise InputError(f"{where}: plateau={given!r}", f"a dictionary of {', '.join(defaults)}", example)
    value = {**defaults, **given}
    right = (
        (isinstance(value["monitor"], str) and value["monitor"], "monitor", "the name of a logged metric"),
        (value["mode"] in ("min", "max"), "mode", "'min' or 'max'"),
        (isinstance(value["patience"], int) and value["patience"] is not True and value["patience"] >= 1,
         "patience", "an integer >= 1"),
        (_number(value["min_delta"]) and value["min_delta"] >= 0, "min_delta", "a number >= 0"),
    )  # fmt: skip
    for ok, name, expected in right:
        if not ok:
            raise InputError(f"{where}: plateau {name}={value[name]!r}", expected, example)
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
