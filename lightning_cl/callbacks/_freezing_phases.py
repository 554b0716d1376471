"""Phases of a freezing schedule: what each thaws, when, and with which learning rate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_cl.errors import InputError
from lightning_cl.finetuning.phases import TRIGGERS, check_phases
from lightning_cl.finetuning.recipes import phases_from_yaml

_EXAMPLE = "phases=[{thaw: head}, {thaw: all, epoch: 1}]"


@dataclass(frozen=True)
class Phase:
    """One phase. ``value`` is a number, the settings of a plateau, or None if it is thawed from the start.

    >>> parse([{"thaw": "head"}, {"thaw": "all", "fraction": 0.25}])[1].when
    'fraction 0.25'
    """

    thaw: str | list[str]
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


def parse(phases: str | Path | Sequence[Mapping[str, Any]]) -> list[Phase]:
    """Phases from dictionaries, or from a YAML file that holds them.

    Raises:
        InputError: For what is no phase, for a first phase that leaves nothing to be trained from the start, or for
            triggers of one kind that do not come one after the other.
    """
    parsed = [_phase(checked) for checked in check_phases(_read(phases))]
    first = parsed[0]
    if first.trigger is not None and first.value != 0:
        raise InputError(
            f"phase 0, which thaws {first.what} at {first.when}",
            "a first phase without a trigger, for something has to be trained from the start",
            _EXAMPLE,
        )
    parsed[0] = Phase(first.thaw, lr=first.lr)
    latest: dict[str, float] = {}
    for i, phase in enumerate(parsed):
        if phase.trigger in ("epoch", "step", "fraction"):
            if phase.value < latest.get(phase.trigger, 0):
                raise InputError(
                    f"phase {i} at {phase.when}, behind a phase at {phase.trigger} {latest[phase.trigger]:g}",
                    "phases in the order in which they thaw",
                    "sort them",
                )
            latest[phase.trigger] = phase.value
    return parsed


def _read(phases: Any) -> Any:
    if not isinstance(phases, str | Path):
        return phases
    path = Path(phases)
    if not path.is_file():
        raise InputError(f"phases={str(phases)!r}", "a YAML file with phases, or a list of them", _EXAMPLE)
    return phases_from_yaml(path.read_text())


def _phase(checked: Mapping[str, Any]) -> Phase:
    trigger = next((name for name in TRIGGERS if name in checked), None)
    return Phase(checked["thaw"], trigger, checked[trigger] if trigger else None, checked.get("lr"))
