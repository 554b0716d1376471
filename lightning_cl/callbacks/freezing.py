"""Freezing schedules."""

import re
from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cl.errors import InputError


class FreezingSchedule(Callback):
    """Keeps part of a model frozen until an epoch of each fit, then trains all of it.

    The user's optimizer is respected: parameters are frozen after it was built, so it holds them all along, no group
    is added or rewritten on thaw, and every LR scheduler works. While frozen they require no gradient, and the frozen
    part's BatchNorm and dropout stay in eval mode after every ``.train()``: running statistics do not move.

    State: whether the part is thawed; a resumed fit equals an uninterrupted one.

    Args:
        freeze: ``"all_but_head"`` (all but the module that holds the last Linear layer's parameters), or regular
            expressions that are searched for in parameter names.
        until_epoch: The epoch at whose start everything is thawed; None never thaws.
        name: Distinguishes several schedules on a Trainer.

    Raises:
        InputError: If nothing matches, everything matches, or several processes train (an optimizer step would miss
            thawed gradients on other ranks).
    """

    def __init__(
        self, freeze: str | Sequence[str] = "all_but_head", until_epoch: int | None = 1, *, name: str = "freezing"
    ) -> None:
        if until_epoch is not None and (not isinstance(until_epoch, int) or until_epoch < 1):
            raise InputError(f"until_epoch={until_epoch!r}", "an integer >= 1, or None", "until_epoch=1 thaws early")
        self.freeze = [freeze] if isinstance(freeze, str) and freeze != "all_but_head" else freeze
        self.until_epoch, self.name = until_epoch, name
        self.thawed = False
        self._parameters: list[nn.Parameter] = []
        self._modules: list[nn.Module] = []
        self._restored = False

    @property
    def state_key(self) -> str:
        """Class and name."""
        return f"{type(self).__name__}.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Find the frozen part."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise InputError(
                f"FreezingSchedule with {trainer.world_size} processes", "one process", "set devices=1 num_nodes=1"
            )
        self._find(pl_module)
        self._restored = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze, now that the optimizer holds the parameters."""
        self._find(pl_module)
        if not self._restored:
            self.thawed = False
        self._require_gradients(self.thawed)
        self._keep_in_eval()

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Thaw when it is time."""
        if not self.thawed and self.until_epoch is not None and trainer.current_epoch >= self.until_epoch:
            self.thawed = True
            self._require_gradients(True)
            for module in self._modules:
                module.train()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Put back into eval what a ``.train()`` in between has switched."""
        self._keep_in_eval()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module trainable, as it was given."""
        if stage == "fit":
            self._require_gradients(True)

    def _find(self, module: nn.Module) -> None:
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if self.freeze == "all_but_head":
            linear = [name for name, m in module.named_modules() if _is_classifier(m)]
            head = linear[-1] if linear else ""
            chosen = [(n, p) for n, p in named if head and not n.startswith(f"{head}.")]
        else:
            chosen = [(n, p) for n, p in named if any(re.search(pattern, n) for pattern in self.freeze)]
        if not chosen or len(chosen) == len(named):
            examples = ", ".join(name for name, _ in named[:4])
            raise InputError(
                f"freeze={self.freeze!r} matches {len(chosen)} of {len(named)} parameters",
                "some but not all of them",
                f"names are like {examples}",
            )
        self._parameters = [p for _, p in chosen]
        frozen = {id(p) for p in self._parameters}
        names = {name for name, _ in chosen}
        self._modules = [
            m
            for prefix, m in module.named_modules()
            if next(m.children(), None) is None and _belongs(prefix, m, frozen, names)
        ]

    def _require_gradients(self, value: bool) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(value)
            if not value:
                parameter.grad = None

    def _keep_in_eval(self) -> None:
        if not self.thawed:
            for module in self._modules:
                if module.training:
                    module.eval()

    def state_dict(self) -> dict[str, Any]:
        """Whether the part is thawed."""
        return {"version": 1, "thawed": self.thawed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as saved."""
        self.thawed, self._restored = bool(state_dict["thawed"]), True


def _is_classifier(module: nn.Module) -> bool:
    from lightning_cl.finetuning.head import ClassifierHead

    return isinstance(module, nn.Linear | ClassifierHead)


def _belongs(prefix: str, module: nn.Module, frozen: set[int], names: set[str]) -> bool:
    """A leaf is frozen with its parameters; one without any (dropout) when all parameters beside it are."""
    own = list(module.parameters())
    if own:
        return all(id(p) in frozen for p in own)
    parent = prefix.rpartition(".")[0]
    return any(name.startswith(f"{parent}." if parent else "") for name in names) and bool(parent)
