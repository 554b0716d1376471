"""Which parameters each phase of a freezing schedule thaws."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.errors import InputError
from lightning_cl.finetuning._adapter_record import base_parameters
from lightning_cl.finetuning._depth_pieces import is_linear
from lightning_cl.finetuning.depth_groups import DepthGroup, depth_groups
from lightning_cl.finetuning.recipes import select_parameters
from lightning_cl.finetuning.selectors import head_of


@dataclass
class Part:
    """A phase with the parameters that it is the first to thaw, by name; identity counts, not names or values."""

    phase: Phase
    parameters: dict[str, nn.Parameter]


@dataclass
class Plan:
    """Parts in the order in which they thaw, and what never does. ``named``: modules that are asked for by name."""

    parts: list[Part]
    never: dict[str, nn.Parameter]
    named: set[str]

    def frozen(self, thawed: int) -> dict[str, nn.Parameter]:
        """What is frozen when this many parts are thawed."""
        waiting = {name: p for part in self.parts[thawed:] for name, p in part.parameters.items()}
        return {**waiting, **self.never}

    def thawed(self, thawed: int) -> dict[str, nn.Parameter]:
        """What is trained then."""
        return {name: p for part in self.parts[:thawed] for name, p in part.parameters.items()}


def by_phases(module: nn.Module, phases: list[Phase], groups: Any, keep_frozen: Any) -> Plan:
    """Everything is the schedule's: a phase thaws what it names, whoever froze it; the rest stays frozen.

    But for the base below adapters, which is not theirs alone: it is saved nowhere, and has to stay what it was. A
    later phase of which nothing else is left is left out.

    Raises:
        InputError: If a phase has nothing left to thaw.
    """
    named: dict[str, nn.Parameter] = dict(module.named_parameters())
    try:
        taken = {id(p) for _, p in select_parameters(module, keep_frozen, groups)} if keep_frozen else set()
    except InputError as error:
        raise InputError(f"keep_frozen: {error.given}", error.expected, error.hint) from error
    base = base_parameters(module)
    parts: list[Part] = []
    for i, phase in enumerate(phases):
        left = {name: p for name, p in select_parameters(module, phase.thaw, groups) if id(p) not in taken}
        chosen = {name: p for name, p in left.items() if id(p) not in base}
        if parts and left and not chosen:
            continue
        if not chosen:
            raise InputError(
                f"phase {i} ({phase.what}) has nothing left to thaw", "a phase with frozen parameters", "leave it out"
            )
        taken |= {id(p) for p in chosen.values()}
        parts.append(Part(phase, chosen))
    thawed = {id(p) for part in parts for p in part.parameters.values()}
    return Plan(parts, {name: p for name, p in named.items() if id(p) not in thawed}, set())


def groups_of(module: nn.Module, groups: Any) -> list[DepthGroup]:
    """The given groups, the model's own, or new ones from ``{name: selector}`` in the order from input to output."""
    if groups is None:
        return depth_groups(module)
    if not isinstance(groups, Mapping) or not groups:
        listed = isinstance(groups, list | tuple) and len(groups) > 0
        if not (listed and all(isinstance(group, DepthGroup) for group in groups)):
            expected = "a list of DepthGroup, a mapping from name to selector, or None"
            raise InputError(f"groups={groups!r:.200}", expected, "leave it out for the model's own")
        return list(groups)
    selected = {name: select_parameters(module, selector) for name, selector in groups.items()}
    return [DepthGroup(name, (), tuple(n for n, _ in named)) for name, named in selected.items()]


def by_name(
    module: nn.Module, freeze: str | list[str], value: float | None, trigger: str = "epoch", groups: Any = None
) -> Plan:
    """Two parts: what is not chosen, and what is chosen and thawed then, or never. What needs no gradient is nobody's.

    Raises:
        InputError: If nothing matches, or everything.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = chosen_by_name(module, freeze, groups)
    if not 0 < len(chosen) < len(named):
        raise InputError(
            f"freeze={freeze!r} matches {len(chosen)} of {len(named)} trainable parameters",
            "some but not all of them",
            f"names are like {', '.join(list(named)[:4])}",
        )
    rest = {name: p for name, p in named.items() if name not in chosen}
    parts = [Part(Phase("the rest"), rest)]
    if value is not None:
        parts.append(Part(Phase(freeze, trigger, value), chosen))
        chosen = {}
    asked = {n for n, _ in module.named_modules() if n and freeze != "all_but_head" and _matches(freeze, n)}
    return Plan(parts, chosen, asked)


def chosen_by_name(module: nn.Module, freeze: str | list[str], groups: Any = None) -> dict[str, nn.Parameter]:
    """The trainable parameters to freeze; each once, though two may have the same values or the same tensor."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if freeze != "all_but_head":
        return {name: p for name, p in named.items() if _matches(freeze, name)}
    head = _head(module, groups)
    return {name: p for name, p in named.items() if id(p) not in head}


def _head(module: nn.Module, groups: Any) -> set[int]:
    """Ids of the parameters of the head's depth group; a weight that its Linear layer shares is the head's too.

    Without such a group, and where the last Linear layer shares all that it has (a language model's output), that layer
    is the head.
    """
    if groups is not None:
        given = groups_of(module, groups)
        return {id(p) for _, p in select_parameters(module, head_of(given), given)}
    linear = [part for part in module.modules() if is_linear(part)]
    last = {id(p) for p in (linear[-1] if linear else module).parameters()}
    uses = Counter(id(p) for part in module.modules() for p in part.parameters(recurse=False))
    named = dict(module.named_parameters())
    lazy = any(is_lazy(p) for p in named.values())
    if not named or lazy or (linear and all(uses[i] > 1 for i in last)):
        return last
    head = next((group for group in depth_groups(module) if group.name == "head"), None)
    if head is None:
        return last
    found = {id(named[name]) for name in head.parameters}
    shares = [ids for part in linear if not found.isdisjoint(ids := {id(p) for p in part.parameters()})]
    return found.union(*shares)


def patterns(freeze: Any) -> str | list[str]:
    """``"all_but_head"``, or regular expressions that can be compiled.

    Raises:
        InputError: With the one that cannot.
    """
    if freeze == "all_but_head":
        return "all_but_head"
    given = [freeze] if isinstance(freeze, str) else list(freeze)
    for pattern in given:
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise InputError(
                f"freeze={pattern!r} ({error})", "a regular expression", "try freeze='^backbone'"
            ) from error
    return given


def _matches(freeze: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in freeze)
