"""Adapters as a callback."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.callbacks import Callback

from lightning_cl import _compat
from lightning_cl.callbacks._state_path import checked_path, usable
from lightning_cl.errors import InputError
from lightning_cl.files import save_state
from lightning_cl.finetuning import _adapter_record as record
from lightning_cl.finetuning._adapter_build import request
from lightning_cl.finetuning.adapter_files import adopt, save_adapters
from lightning_cl.finetuning.adapters import add_adapters, merged_state

log = logging.getLogger(__name__)


class Adapters(Callback):
    """Trains LoRA or IA3 adapters and the head, and nothing else (see :func:`~lightning_cl.finetuning.add_adapters`).

    They are put in at the first ``setup``, before optimizers are built and before a checkpoint is restored, and
    stay in the module from then on: later fits (tasks) train the same ones. The layers have to exist by then, built in
    ``__init__``. Penalties, distillation and replay act on what is trained. A ``FreezingSchedule`` freezes adapters for
    its time and thaws nothing of the base.

    State: the config from which the adapters are built again.

    Args:
        kind, targets, rank, alpha, dropout, head, also_train, options, seed: See
            :func:`~lightning_cl.finetuning.add_adapters`.
        save: ``"all"``, or ``"trained"``: this Trainer's checkpoints hold only what was trained. The base then comes
            from the module as it is built, which has to load the same pretrained weights; another one is refused.
            Checkpoints with ``save_weights_only=True`` and the boundary checkpoints of ``run_sequence`` hold all.
        export: File that is written at the normal end of each fit, by
            :func:`~lightning_cl.finetuning.save_adapters`.
        export_merged: File for the state dict of the plain module with the adapters merged, at the same time; the
            module itself keeps its adapters.
        name: Distinguishes callbacks in checkpoints; a module has one set of adapters.

    Raises:
        InputError: For what ``add_adapters`` refuses, adapters other than these in the module or the checkpoint, an
            optimizer that does not hold all that is to be trained, and sharded strategies.
    """

    #: what records a module's parameters has to stand behind it
    adds_parameters = True

    def __init__(
        self,
        kind: Literal["lora", "ia3"] = "lora",
        *,
        targets: str | Sequence[str] = "auto",
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        head: str | Sequence[str] | None = "auto",
        also_train: str | Sequence[str] = (),
        options: dict[str, Any] | None = None,
        seed: int = 0,
        save: Literal["all", "trained"] = "all",
        export: str | Path | None = None,
        export_merged: str | Path | None = None,
        name: str = "adapters",
    ) -> None:
        if save not in ("all", "trained"):
            raise InputError(f"save={save!r}", "'all' or 'trained'", "leave it out for 'all'")
        self.request = request(kind, targets, rank, alpha, dropout, head, also_train, options, seed)
        self.arguments: dict[str, Any] = {
            **{"kind": kind, "targets": targets, "rank": rank, "alpha": alpha, "dropout": dropout, "head": head},
            **{"also_train": also_train, "options": options, "seed": seed},
        }
        self.save, self.name = save, name
        self.export, self.export_merged = checked_path(export, "export"), checked_path(export_merged, "export_merged")
        self.config: dict[str, Any] | None = None
        self._checked = False

    @property
    def state_key(self) -> str:
        """Class and name."""
        return f"{type(self).__name__}.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Put the adapters in, once; for an evaluation too, which may read a checkpoint with them."""
        strategy = _compat.strategy_name(trainer)
        if strategy in _compat.SHARDED:
            raise InputError(
                f"strategy {strategy!r} with {type(self).__name__}",
                "a strategy that keeps whole parameters",
                "use strategy='auto' or 'ddp'",
            )
        for key in ("export", "export_merged"):
            if (path := getattr(self, key)) is not None:
                usable(path, key)
        if self.arguments["head"] in (None, [], ()) and hasattr(pl_module, "learn_classes"):
            raise InputError(
                f"head={self.arguments['head']!r} with {type(pl_module).__name__}",
                "its head trained whole, because it gains rows for new classes",
                "leave head out for 'auto'",
            )
        held = record.record_of(pl_module)
        if held is None:
            add_adapters(pl_module, **self.arguments)
            held = record.record_of(pl_module)
        self.config = held["config"]  # type: ignore[index]
        self._refuse_others(self.config, "the module")

    def prepare_module(self, module: Any, state: dict[str, Any] | None) -> None:
        """Before a run goes on: give a module as it is built the adapters that its weights on disk belong to."""
        if state and state["config"] is not None and record.record_of(module) is None:
            adopt(module, state["config"])

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint without its base for a module with another one."""
        record.check_base(pl_module, checkpoint.get(record.BASE_KEY))

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse an optimizer that would leave some of them as they are; hold layers that a strategy has replaced."""
        record.hold_statistics(pl_module)
        self._checked = False
        held = {id(p) for optimizer in trainer.optimizers for g in optimizer.param_groups for p in g["params"]}
        missing = [name for name, p in pl_module.named_parameters() if p.requires_grad and id(p) not in held]
        if missing:
            raise InputError(
                f"{len(missing)} trainable parameters in no optimizer, like {missing[0]!r}",
                "an optimizer of all that require a gradient",
                "give it self.parameters() in configure_optimizers",
            )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Once: refuse adapters that the module does not call."""
        if not self._checked:
            self._checked = refuse_uncalled(pl_module)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Leave out the base."""
        if self.save == "trained" and (held := record.record_of(pl_module)):
            state, frozen = checkpoint["state_dict"], set(held["frozen"])
            checkpoint["state_dict"] = {name: value for name, value in state.items() if name not in frozen}
            checkpoint[record.BASE_KEY] = record.base_values(pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the files that were asked for."""
        if not trainer.is_global_zero or not _compat.ended_normally(trainer):
            return
        if self.export is not None:
            save_adapters(pl_module, self.export)
        if self.export_merged is not None:
            save_state(self.export_merged, merged_state(pl_module))

    def state_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"version": 1, "config": self.config}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse the state of other adapters."""
        if state_dict["config"] is not None:
            self._refuse_others(state_dict["config"], "the checkpoint")
        self.config = state_dict["config"]

    def _refuse_others(self, config: dict[str, Any], where: str) -> None:
        differing = sorted(key for key, value in self.request.items() if config.get(key) != value)
        if differing:
            changes = ", ".join(f"{key}: {config.get(key)!r} in {where}" for key in differing)
            raise InputError(
                f"{type(self).__name__} with other arguments ({changes})",
                f"those of {where}",
                "give the same arguments, or merge_adapters(module) first",
            )


def refuse_uncalled(module: Any) -> bool:
    """Refuse adapters of which none has a gradient after a backward pass, and name those that have none.

    Returns:
        Whether there was anything to see; a schedule may have frozen them for now.
    """
    called: list[str] = []
    uncalled: list[str] = []
    for name in (record.record_of(module) or {"config": {"layers": []}})["config"]["layers"]:
        own = [p for p in module.get_submodule(name).parameters() if p.requires_grad]
        if own:
            (uncalled if all(p.grad is None for p in own) else called).append(name)
    if uncalled and not called:
        raise InputError(
            f"adapters on {uncalled[0]!r} and {len(uncalled) - 1} other layers, of which none has a gradient",
            "layers that the module calls in training_step",
            "choose others with targets=, some modules read a layer's weight without calling it",
        )
    if uncalled:
        log.warning("adapters on %s have no gradient: the module does not call these layers", ", ".join(uncalled[:5]))
    return bool(called)
