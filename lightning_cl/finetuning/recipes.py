"""Freezing schedules by name."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning.depth_groups import DepthGroup, depth_groups
from lightning_cl.finetuning.phases import TRIGGERS, Phase, check_phases, is_number
from lightning_cl.finetuning.schedule_text import phases_from_yaml, schedule_yaml
from lightning_cl.finetuning.selectors import Selector, head_of, select_parameters

__all__ = [
    "RECIPES",
    "Phase",
    "Selector",
    "generated_schedule",
    "phases_from_yaml",
    "recipe_phases",
    "schedule_yaml",
    "select_parameters",
]
Groups = Sequence[DepthGroup]


def recipe_phases(name: str, groups: Groups, **options: Any) -> list[Phase]:
    """The phases of a named recipe for a model's depth groups; :func:`.check_phases` says what a phase is.

    * ``linear_probe``: the head only.
    * ``lp_ft``: the head, then everything (Kumar et al. 2022, arXiv:2202.10054). Options: one of ``epoch`` (1),
      ``step``, ``fraction``, ``plateau`` of the second phase; ``lr``, the optimizer's learning rate: the second phase
      then has ``lr * lr_factor`` (0.1), else the optimizer's own.
    * ``gradual_unfreeze``: top-down, one more group at a time (ULMFiT, Howard & Ruder 2018, arXiv:1801.06146).
      Options: ``every`` (1), in ``unit`` (``"epoch"``, ``"step"`` or ``"fraction"``); ``lr``, that of the head: each
      group below then has its neighbour's divided by ``lr_decay`` (2.6).
    * ``last_k``: the last ``k`` (2) groups, the head among them.
    * ``surgical_first``: the stem and the first ``k`` (1) stages, for a shift of the input (Lee et al. 2022,
      arXiv:2210.11466). Options: ``k``; ``head`` (true), whether the head is trained too.
    * ``full``: everything from the start.

    Args:
        name: Of the recipe.
        groups: From :func:`~lightning_cl.depth_groups`.
        options: Of the recipe.

    Raises:
        InputError: For another name, an option that the recipe does not have, or a value that is none.

    Example:
        >>> groups = [DepthGroup(name, (), ()) for name in ("stem", "stage1", "head")]
        >>> recipe_phases("gradual_unfreeze", groups, every=2)
        [{'thaw': 'head'}, {'thaw': 'stage1', 'epoch': 2}, {'thaw': 'stem', 'epoch': 4}]
    """
    if name not in RECIPES:
        raise InputError(f"recipe {name!r}", f"one of {', '.join(RECIPES)}", "lightning-cl schedule prints one")
    known = [p for p in inspect.signature(RECIPES[name]).parameters if p != "groups"]
    known = [*TRIGGERS, *(p for p in known if p != "when")] if "when" in known else known
    unknown = sorted(options.keys() - set(known))
    if unknown:
        has = ", ".join(known) or "no options"
        raise InputError(f"recipe {name!r} with {', '.join(unknown)}", has, "leave the others out")
    return check_phases(RECIPES[name](groups, **options))


def generated_schedule(
    module: nn.Module, *, recipe: str = "gradual_unfreeze", max_groups: int = 8, example: Any = None, **options: Any
) -> list[Phase]:
    """The phases of a recipe for a module, to be edited: one for each of its groups, ``max_groups`` at most.

    Args:
        module: The model.
        recipe: See :func:`recipe_phases`.
        max_groups, example: See :func:`~lightning_cl.depth_groups`.
        options: Of the recipe.

    Raises:
        InputError: As :func:`recipe_phases` and :func:`~lightning_cl.depth_groups`.
    """
    return recipe_phases(recipe, depth_groups(module, max_groups=max_groups, example=example), **options)


def _linear_probe(groups: Groups) -> list[Phase]:
    return [{"thaw": head_of(groups)}]


def _lp_ft(groups: Groups, *, lr: float | None = None, lr_factor: float = 0.1, **when: Any) -> list[Phase]:
    second = {"thaw": "all", **(when or {"epoch": 1})}
    if lr is not None:
        second["lr"] = _positive("lp_ft", "lr", lr) * _positive("lp_ft", "lr_factor", lr_factor)
    return [{"thaw": head_of(groups)}, second]


def _gradual_unfreeze(
    groups: Groups, *, every: float = 1, unit: str = "epoch", lr: float | None = None, lr_decay: float = 2.6
) -> list[Phase]:
    if unit not in ("epoch", "step", "fraction"):
        raise InputError(f"unit={unit!r}", "'epoch', 'step' or 'fraction'", "leave it out for 'epoch'")
    every = _positive("gradual_unfreeze", "every", every)
    if unit == "fraction" and every * (len(groups) - 1) > 1:
        most = 1 / (len(groups) - 1)
        raise InputError(f"every={every} of the training for {len(groups)} groups", f"<= {most:.3g}", "every=0.1")
    phases: list[Phase] = []
    for i, group in enumerate(reversed(groups)):
        phase: Phase = {
            "thaw": group.name,
            **({unit: round(i * every, 6) if unit == "fraction" else i * every} if i else {}),
        }
        if lr is not None:
            phase["lr"] = (
                _positive("gradual_unfreeze", "lr", lr) / _positive("gradual_unfreeze", "lr_decay", lr_decay) ** i
            )
        phases.append(phase)
    return phases


def _last_k(groups: Groups, *, k: int = 2) -> list[Phase]:
    k = _count(k, len(groups))
    return [{"thaw": [group.name for group in groups[-k:]]}]


def _surgical_first(groups: Groups, *, k: int = 1, head: bool = True) -> list[Phase]:
    body = [group.name for group in groups if group.name != "head"] or [head_of(groups)]
    chosen = body[: _count(k, max(1, len(body) - 1)) + 1]
    return [{"thaw": chosen + [head_of(groups)] * (head and head_of(groups) not in chosen)}]


def _full(groups: Groups) -> list[Phase]:
    return [{"thaw": "all"}]


def _positive(recipe: str, key: str, value: Any) -> Any:
    if not is_number(value) or not value > 0:
        raise InputError(f"{key}={value!r} of recipe {recipe!r}", "a number > 0", "leave it out for the default")
    return value


def _count(k: Any, most: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= most:
        raise InputError(f"k={k!r}", f"an integer from 1 to {most} for this model", "leave it out for the default")
    return k


RECIPES: dict[str, Callable[..., list[Phase]]] = {
    "linear_probe": _linear_probe,
    "lp_ft": _lp_ft,
    "gradual_unfreeze": _gradual_unfreeze,
    "last_k": _last_k,
    "surgical_first": _surgical_first,
    "full": _full,
}
