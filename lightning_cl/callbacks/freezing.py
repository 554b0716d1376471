"""Freezing schedules."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from lightning_cl import _compat
from lightning_cl._compat_exit import settle_if_connected
from lightning_cl.callbacks._freezing_arguments import FreezingArguments
from lightning_cl.callbacks._freezing_length import cannot_come, marked, say
from lightning_cl.callbacks._freezing_optimizer import add_missing_groups, refuse_other_groups
from lightning_cl.callbacks._freezing_part import FrozenPart, requiring
from lightning_cl.callbacks._freezing_phases import Phase
from lightning_cl.callbacks._freezing_plan import chosen_by_name
from lightning_cl.callbacks._freezing_table import rows, show
from lightning_cl.callbacks._freezing_triggers import Plateau, due, refuse_endless
from lightning_cl.callbacks._freezing_wrap import refuse_strategies, wrap_again
from lightning_cl.callbacks._plateau_resume import PlateauSteps
from lightning_cl.errors import InputError

log = logging.getLogger(__name__)


class FreezingSchedule(Callback):
    """Trains a model part by part: frozen at first, thawed in phases, in each fit anew.

    What thaws is named by depth group (``"head"``, ``"stage3"``, ``"stem"``: see ``depth_groups``), ``"all"``,
    ``"all_but_head"``, by ``"re:REGEX"`` on module names or by ``"type:BatchNorm2d"``; what no phase names stays
    frozen. When: by ``epoch``, ``step`` (of the optimizer), ``fraction`` of the training, or ``plateau`` of a metric.
    A phase waits for the one before it. A table at the start says what thaws when with which learning rate; a warning
    names phases that cannot come, because the fit is too short.

    **Optimizer.** It is the user's. Parameters are frozen after it was built; those that it holds stay where they are,
    their groups and learning rates are not touched, and so every LR scheduler works. While frozen they have no
    gradient, so that neither momentum nor weight decay moves them. Parameters that a phase names and that no optimizer
    holds (``configure_optimizers`` filtered by ``requires_grad``) become a group of it at the start of the fit, with
    the settings of its first group, and the phase's ``lr`` if it has one. That group's learning rate follows the LR
    schedulers as if it had been there when they were made: from the start of the fit, not from its thaw. Schedulers
    for which this is not known to be right are refused at the start.

    **Frozen part.** It is in eval mode, whoever calls ``.train()``: BatchNorm normalises with its running statistics
    and leaves them alone, dropout does nothing. To it belong all modules whose parameters are all frozen. A module
    without parameters (dropout, BatchNorm with ``affine=False``) that stands in none of these goes with its neighbours:
    it is frozen if the modules with parameters that are defined before and after it, in the same parent, are frozen.
    So dropout between a frozen layer and the head stays the head's.

    **Several processes.** ``DistributedDataParallel`` notes once which parameters require a gradient. Therefore the
    module is wrapped anew, by the strategy's own ``configure_ddp()``, when it is frozen and at every thaw: ranks stay
    equal to the bit, gradients of the frozen part are neither waited for nor sent, and accumulation, clipping and
    communication hooks work as ever.

    State: how many phases are thawed; the plateau's best value and patience, and what of its metric was logged in this
    epoch; with ``freeze="auto"`` the phases too.
    A resumed fit equals an uninterrupted one. After the fit everything is as it was given; methods of ``run_sequence``
    that look at the module then see what was not thawed as frozen still.

    Args:
        freeze: Short form with two phases: ``"all_but_head"`` (all parameters but those of the head, which is that of
            ``depth_groups``, or the last Linear layer of a model in which that finds none), or regular expressions that
            are searched for in parameter names, are frozen first. Without any argument: ``"all_but_head"``. What did
            not require a gradient before stays so. ``"auto"``: phases are found at the start of each fit from gradients
            on its training data, see :func:`~lightning_cl.finetuning.choose_groups`; the table and the reason are
            printed and logged.
        until_epoch: Of the short form: the epoch (of each fit, from 0) at whose start everything is thawed; None never.
        until_fraction: Of the short form, in place of ``until_epoch``: the fraction of the training, so that a fit of
            one epoch thaws too. Both are of no use beside phases, a recipe or ``"auto"``, which say when themselves.
        phases: List of ``{"thaw": name or names, trigger: value, "lr": optional}``. The first one has no trigger, all
            others have one: ``"epoch": 2``, ``"step": 500``, ``"fraction": 0.5``, or ``"plateau": {"monitor":
            "val_loss", "mode": "min", "patience": 3, "min_delta": 0.0}``. They thaw what they name, also what you
            froze. Or a YAML file with them (``generated_schedule`` and ``schedule_yaml`` make one to be edited).
        recipe: Phases by name: ``linear_probe``, ``lp_ft``, ``gradual_unfreeze``, ``last_k``, ``surgical_first``,
            ``full``.
        recipe_options: Arguments of the recipe, see ``recipe_phases``; of ``freeze="auto"``, see ``auto_phases``.
        groups: Depth groups instead of those that ``depth_groups(module)`` finds: a list of them, or
            ``{name: selector}`` from input to output.
        keep_frozen: Name or names that no phase thaws (fixed position embeddings, for instance).
        table: Print the table; it is logged in any case.
        name: Distinguishes several schedules on a Trainer; only short forms can be combined, on different parameters.

    Raises:
        InputError: For arguments that cannot be right; at the start of the fit if a name matches nothing, ``lr`` is
            given for parameters that the optimizer holds, an LR scheduler or optimizer cannot take a group, or the
            strategy is sharded; at the end of an epoch if the monitored metric was not logged.
    """

    def __init__(
        self,
        freeze: str | Sequence[str] | None = None,
        until_epoch: int | None = 1,
        *,
        until_fraction: float | None = None,
        phases: Sequence[Mapping[str, Any]] | str | Path | None = None,
        recipe: str | None = None,
        recipe_options: Mapping[str, Any] | None = None,
        groups: Any = None,
        keep_frozen: str | Sequence[str] | None = None,
        table: bool = True,
        name: str = "freezing",
    ) -> None:
        self.arguments = FreezingArguments(
            freeze, until_epoch, until_fraction, phases, recipe, recipe_options, groups, keep_frozen
        )
        self.table, self.name = table, name
        self.thawed = 1  # phases; the first one always is
        self._plateau, self._steps = Plateau(), PlateauSteps()
        self._part: FrozenPart | None = None
        self._restored = False
        self._begun = False  # by this fit, or by the one that a checkpoint is of
        self._groups_saved: list[int] = []  # of each optimizer in the checkpoint
        self._rows: list[tuple[str, ...]] = []  # of the table
        self._shown: list[tuple[str, ...]] = []

    @property
    def state_key(self) -> str:
        """Class and name."""
        return f"{type(self).__name__}.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work. A checkpoint's state is loaded after this."""
        if stage != "fit":
            return
        settle_if_connected()
        refuse_strategies(trainer, type(self).__name__)
        others = [c for c in trainer.callbacks if isinstance(c, FreezingSchedule) and c is not self]
        if others and not all(schedule.arguments.freeze for schedule in (self, *others)):
            raise InputError(
                "phases or a recipe beside another FreezingSchedule", "one schedule", "put all phases in it"
            )
        refuse_endless(self.arguments.phases, trainer)
        self._restored, self._begun, self._groups_saved = False, False, []

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Note how many parameter groups are coming; ``LearningRateFinder`` puts back what was before our groups."""
        state = checkpoint.get("callbacks", {}).get(self.state_key, {})
        if self._groups_saved or not state.get("begun", True):
            return
        self._groups_saved = [len(state["param_groups"]) for state in checkpoint.get("optimizer_states", [])]

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze, now that the optimizer holds the parameters and the head has its rows."""
        if not self._restored:
            self.thawed, self._plateau, self._steps = 1, Plateau(), PlateauSteps()
            self.arguments.find(trainer, pl_module, self.name, self.table and trainer.is_global_zero)
        self._begun = True
        plan = self.arguments.plan(pl_module)
        refuse_endless([part.phase for part in plan.parts], trainer)
        self.thawed = min(self.thawed, len(plan.parts))
        optimizers, schedulers = _compat.optimizers_of(trainer, pl_module)
        # in the short form what is not frozen is the user's business
        add_missing_groups(optimizers, schedulers, plan.parts[1 if self.arguments.freeze else 0 :])
        refuse_other_groups(self._groups_saved, optimizers, self.state_key)
        others = [c._part for c in trainer.callbacks if isinstance(c, FreezingSchedule) and c is not self and c._part]
        of_others = {id(p) for other in others for p in other.plan.frozen(0).values()}
        self._part = FrozenPart(pl_module, plan, of_others)
        self._part.freeze(self.thawed)
        wrap_again(trainer)
        self._rows = rows(plan, optimizers)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look where the checkpoint was about to; thaw when one without our state is behind a phase's time."""
        self._show(trainer)
        self._steps.make_up(trainer)
        self._plateau.resume(self._next, self._coming_plateau, trainer)
        self._thaw(trainer)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Thaw when it is time."""
        self._steps.epoch_starts()
        self._thaw(trainer)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Thaw when it is time."""
        self._thaw(trainer, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Follow the monitored metric."""
        self._plateau.batch_ends(self._coming_plateau, trainer)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the monitored metric."""
        self._plateau.look(self._next, trainer, after_validation=True)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Look at the monitored metric; let the epoch of a resume end as any other."""
        self._plateau.epoch_ends(self._next, trainer)
        self._steps.epoch_ends(trainer)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was given."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was given."""
        self._release()

    @contextmanager
    def as_fitted(self, pl_module: Any) -> Iterator[None]:
        """Inside the block, what the last fit did not thaw requires no gradient (importances skip it)."""
        freeze = self.arguments.freeze
        if freeze:
            with requiring({} if self.thawed > 1 else chosen_by_name(pl_module, freeze, self.arguments.groups), {}):
                yield
            return
        plan = self.arguments.plan(pl_module)
        with requiring(plan.frozen(self.thawed), plan.thawed(self.thawed)):
            yield

    @property
    def _next(self) -> Phase | None:
        """The phase that is waited for."""
        return next(iter(self._waiting), None)

    @property
    def _coming_plateau(self) -> Phase | None:
        return next((phase for phase in self._waiting if phase.trigger == "plateau"), None)

    @property
    def _waiting(self) -> list[Phase]:
        return [part.phase for part in self._part.plan.parts[self.thawed :]] if self._part is not None else []

    def _show(self, trainer: Any) -> None:
        """The table, and what of it cannot come."""
        phases = [part.phase for part in self._part.plan.parts] if self._part is not None else []
        never = cannot_come(phases, self.thawed, trainer)
        table = marked(self._rows, never)
        show(self.name, table, printed=self.table and trainer.is_global_zero and table != self._shown)
        self._shown = table
        if trainer.is_global_zero:
            say(self.name, phases, never)

    def _thaw(self, trainer: Any, batch_idx: int = 0) -> None:
        """Thaw every phase that is due."""
        before = self.thawed
        while (phase := self._next) is not None and due(phase, trainer, self._plateau, batch_idx):
            log.info("%s: %s thawed in epoch %d, at step %d", self.name, phase.what, trainer.current_epoch,
                     trainer.global_step)  # fmt: skip
            self.thawed, self._plateau = self.thawed + 1, Plateau(self._plateau.metric)
        if self.thawed > before and self._part is not None:
            self._part.freeze(self.thawed)
            wrap_again(trainer)

    def _release(self) -> None:
        """Parameters and modes as they were; does nothing the second time."""
        if self._part is not None:
            self._part.release()
        self._part = None
        self._steps.epoch_starts()

    def state_dict(self) -> dict[str, Any]:
        """How many phases are thawed, and how long the plateau has been waited for."""
        plateau, steps = self._plateau.state(), self._steps.state()
        found = {"found": self.arguments.found} if self.arguments.auto else {}
        begun = self._begun or self._restored
        return {"version": 1, "begun": begun, "thawed": self.thawed, "plateau": plateau, "lr_steps": steps, **found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as saved; a state of before a fit's start is none (``LearningRateFinder`` writes and reads one)."""
        if not state_dict.get("begun", True):
            return
        self.thawed, self._restored = int(state_dict["thawed"]), True
        self._plateau.load(state_dict["plateau"])
        self._steps.load(state_dict["lr_steps"])
        self.arguments.found = list(state_dict.get("found", []))
