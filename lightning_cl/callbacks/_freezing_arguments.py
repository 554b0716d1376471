"""What the arguments of a freezing schedule have to be, and the plan that they make for a module."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from lightning_cl.callbacks._freezing_auto import found_phases, refuse_unknown_options
from lightning_cl.callbacks._freezing_phases import Phase, parse
from lightning_cl.callbacks._freezing_plan import Plan, by_name, by_phases, groups_of, patterns
from lightning_cl.errors import InputError
from lightning_cl.finetuning.depth_groups import DepthGroup
from lightning_cl.finetuning.phases import is_number
from lightning_cl.finetuning.recipes import recipe_phases


class FreezingArguments:
    """Checked arguments; see :class:`~lightning_cl.FreezingSchedule`. ``freeze`` is None unless it is the short form.

    Raises:
        InputError: For arguments that exclude each other or cannot be right for any module.
    """

    def __init__(
        self,
        freeze: str | Sequence[str] | None,
        until_epoch: int | None,
        until_fraction: float | None,
        phases: Any,
        recipe: str | None,
        recipe_options: Mapping[str, Any] | None,
        groups: Any,
        keep_frozen: str | Sequence[str] | None,
    ) -> None:
        forms = {"freeze": freeze, "phases": phases, "recipe": recipe}
        given = [key for key, value in forms.items() if value is not None]
        if len(given) > 1:
            raise InputError(" and ".join(given), "one of freeze, phases and recipe", f"keep {given[-1]}")
        self.auto = freeze == "auto"
        if recipe_options and recipe is None and not self.auto:
            raise InputError("recipe_options without a recipe", "recipe and its options", "set recipe='lp_ft', say")
        short = given in ([], ["freeze"]) and not self.auto
        if keep_frozen and short:
            raise InputError("keep_frozen without phases or a recipe", "phases or a recipe", "leave it out")
        if until_epoch is not None and (
            not isinstance(until_epoch, int) or isinstance(until_epoch, bool) or until_epoch < 1
        ):
            raise InputError(f"until_epoch={until_epoch!r}", "an integer >= 1, or None", "until_epoch=1 thaws early")
        if until_fraction is not None:
            _check_fraction(until_fraction, until_epoch)
        if self.auto:
            refuse_unknown_options(dict(recipe_options or {}))
        if recipe is not None:  # its options depend on the model's groups
            recipe_phases(recipe, [DepthGroup(name, (), ()) for name in ("stem", "stage1", "head")])
        self.freeze = patterns("all_but_head" if freeze is None else freeze) if short else None
        self.phases: list[Phase] = parse(phases) if phases is not None else []
        by_epoch = until_fraction is None
        self.until = (until_epoch, "epoch") if by_epoch else (until_fraction, "fraction")
        self.recipe, self.recipe_options = recipe, dict(recipe_options or {})
        self.groups, self.keep_frozen = groups, keep_frozen
        self.found: list[dict[str, Any]] = []  # by freeze="auto", for the fit at hand

    def find(self, trainer: Any, module: nn.Module, name: str, printed: bool) -> None:
        """Look for the phases that suit the data, if that was asked for."""
        if self.auto:
            groups = groups_of(module, self.groups)
            self.found = found_phases(trainer, module, groups, self.recipe_options, name, printed)

    def plan(self, module: nn.Module) -> Plan:
        """What thaws in which order.

        Raises:
            InputError: If a name matches nothing.
        """
        if self.freeze is not None:
            value, trigger = self.until
            return by_name(module, self.freeze, value, trigger, self.groups)
        groups = groups_of(module, self.groups)
        phases = self.phases
        if self.recipe is not None:
            phases = parse(recipe_phases(self.recipe, groups, **self.recipe_options))
        elif self.auto:
            phases = parse(self.found or [{"thaw": "all"}])
        return by_phases(module, phases, groups, self.keep_frozen)


def _check_fraction(until_fraction: Any, until_epoch: int | None) -> None:
    if until_epoch not in (None, 1):  # 1 is the default
        given = f"until_epoch={until_epoch!r} and until_fraction={until_fraction!r}"
        raise InputError(given, "one of them", "set until_fraction=None to count epochs")
    if not is_number(until_fraction) or not 0 < until_fraction < 1:
        raise InputError(
            f"until_fraction={until_fraction!r}", "a number in (0, 1), or None", "0.5 is half of the training"
        )
