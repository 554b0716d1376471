"""Freezing schedules."""

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import nn

from lightning_cl import _compat
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.errors import InputError

log = logging.getLogger(__name__)


class FreezingSchedule(Callback):
    """Keeps part of a model frozen until an epoch of each fit, then trains all of it.

    The user's optimizer is respected: parameters are frozen after it was built, so it holds them all along, no group
    is added or rewritten on thaw, and every LR scheduler works. While frozen they require no gradient and have none,
    so neither momentum nor weight decay moves them. Parameters that did not require a gradient before stay so.

    The frozen part is in eval mode, whoever calls ``.train()``: BatchNorm normalises with its running statistics and
    leaves them alone, dropout does nothing. To it belong all modules whose parameters are all frozen. A module without
    parameters (dropout, BatchNorm with ``affine=False``) that stands in none of these goes with its neighbours: it
    is frozen if the modules with parameters that are defined before and after it, in the same parent, are frozen. So
    dropout between a frozen layer and the head stays the head's. A regular expression that matches its own name
    freezes it in any case.

    State: whether the part is thawed; a resumed fit equals an uninterrupted one. After the fit everything is as it was
    given; methods of ``run_sequence`` that look at the module then see what was not thawed as frozen still.

    Args:
        freeze: ``"all_but_head"`` (all parameters but those of the last Linear layer), or regular expressions that
            are searched for in parameter names.
        until_epoch: The epoch (of each fit, from 0) at whose start everything is thawed; None never thaws.
        name: Distinguishes several schedules on a Trainer; they may not freeze the same parameters.

    Raises:
        InputError: If nothing matches, everything matches, several processes train (an optimizer step would miss
            thawed gradients on other ranks), or the strategy is sharded.
    """

    def __init__(
        self, freeze: str | Sequence[str] = "all_but_head", until_epoch: int | None = 1, *, name: str = "freezing"
    ) -> None:
        if until_epoch is not None and (
            not isinstance(until_epoch, int) or isinstance(until_epoch, bool) or until_epoch < 1
        ):
            raise InputError(f"until_epoch={until_epoch!r}", "an integer >= 1, or None", "until_epoch=1 thaws early")
        self.freeze = freeze if freeze == "all_but_head" else [freeze] if isinstance(freeze, str) else list(freeze)
        for pattern in self.freeze if isinstance(self.freeze, list) else []:
            try:
                re.compile(pattern)
            except (re.error, TypeError) as error:
                raise InputError(
                    f"freeze={pattern!r} ({error})", "a regular expression", "try freeze='^backbone'"
                ) from error
        self.until_epoch, self.name = until_epoch, name
        self.thawed = False
        self._parameters: list[nn.Parameter] = []
        self._patches: list[tuple[nn.Module, InstancePatch]] = []
        self._training: set[nn.Module] = set()  # held modules that are, or were told to be, in training mode
        self._restored = False

    @property
    def state_key(self) -> str:
        """Class and name."""
        return f"{type(self).__name__}.{self.name}"

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what cannot work. A checkpoint's state is loaded after this."""
        if stage != "fit":
            return
        if trainer.world_size > 1:
            raise InputError(
                f"FreezingSchedule with {trainer.world_size} processes", "one process", "set devices=1 num_nodes=1"
            )
        strategy = _compat.strategy_name(trainer)
        if strategy in _compat.SHARDED:
            raise InputError(f"strategy {strategy!r} with FreezingSchedule", "whole parameters", "use strategy='auto'")
        self._restored = False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze, now that the optimizer holds the parameters and the head has its rows."""
        self.thawed = self.thawed and self._restored
        if not self.thawed:
            schedules = [c for c in trainer.callbacks if isinstance(c, FreezingSchedule) and c is not self]
            self._freeze(pl_module, {id(p) for other in schedules for p in other._parameters})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Thaw when a checkpoint without our state is resumed behind that epoch."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Thaw when it is time."""
        if not self.thawed and self.until_epoch is not None and trainer.current_epoch >= self.until_epoch:
            self._release()
            self.thawed = True

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Leave the module as it was given."""
        self._release()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave the module as it was given."""
        self._release()

    @contextmanager
    def as_fitted(self, pl_module: Any) -> Iterator[None]:
        """Inside the block, what the last fit did not thaw requires no gradient (importances skip it)."""
        frozen = [] if self.thawed else self._find(pl_module)
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _find(self, module: nn.Module) -> list[nn.Parameter]:
        """The parameters to freeze; by identity, because two may have the same values or the same tensor."""
        named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        if self.freeze == "all_but_head":
            # a cosine head is no Linear layer
            kinds = [(name, m, isinstance(m, nn.Linear)) for name, m in module.named_modules()]
            linear = [(name, m) for name, m, is_linear in kinds if is_linear or hasattr(m, "similarities")]
            head = {id(p) for p in linear[-1][1].parameters()} if linear else {id(p) for _, p in named}
            chosen = [p for _, p in named if id(p) not in head]
        else:
            chosen = [p for n, p in named if self._matches(n)]
        return chosen

    def _matches(self, name: str) -> bool:
        return self.freeze != "all_but_head" and any(re.search(pattern, name) for pattern in self.freeze)

    def _freeze(self, module: nn.Module, of_others: set[int]) -> None:
        named = [name for name, p in module.named_parameters() if p.requires_grad]
        self._parameters = self._find(module)
        if not 0 < len(self._parameters) < len(named):
            examples = ", ".join(named[:4])
            raise InputError(
                f"freeze={self.freeze!r} matches {len(self._parameters)} of {len(named)} trainable parameters",
                "some but not all of them",
                f"names are like {examples}",
            )
        # frozen by the user, for good; what another schedule holds is thawed at another time
        fixed = {id(p) for p in module.parameters() if not p.requires_grad} - of_others
        ours = {id(p) for p in self._parameters}
        log.info("%s: %d of %d parameters frozen", self.name, len(ours), len(list(module.parameters())))
        for parameter in self._parameters:
            parameter.requires_grad_(False)
            parameter.grad = None
        frozen: dict[nn.Module, None] = {}
        for name, part in module.named_modules():
            own = {id(p) for p in part.parameters()}
            if (own & ours and own <= ours | fixed) or (not own and name and self._matches(name)):
                frozen.update(dict.fromkeys(part.modules()))
            else:
                frozen.update(dict.fromkeys(m for child in _between(part, ours, fixed) for m in child.modules()))
        for part in frozen:
            self._hold(part)

    def _hold(self, part: nn.Module) -> None:
        """Put a module into eval mode and let its ``train()`` do the same; each one, for it may be called alone."""
        if part.training:
            self._training.add(part)
        part.training = False
        original = part.train

        def train(mode: bool = True) -> nn.Module:
            if mode:
                self._training.add(part)
            return original(False)

        self._patches.append((part, InstancePatch(part, "train", train)))

    def _release(self) -> None:
        """Parameters and modes as they were; does nothing the second time."""
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        for part, patch in reversed(self._patches):
            if not patch.remove():
                patch.function = patch.original  # somebody stands on top and will go on calling this
            part.training = part in self._training
        self._parameters, self._patches, self._training = [], [], set()

    def state_dict(self) -> dict[str, Any]:
        """Whether the part is thawed."""
        return {"version": 1, "thawed": self.thawed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on as saved."""
        self.thawed, self._restored = bool(state_dict["thawed"]), True


def _between(parent: nn.Module, ours: set[int], fixed: set[int]) -> list[nn.Module]:
    """Children without parameters whose nearest neighbours with parameters, on either side, are frozen."""
    children = list(parent.children())
    own = [{id(p) for p in child.parameters()} for child in children]
    # None: no parameters; else whether all of them are frozen, at least one by us
    state = [bool(ids & ours and ids <= ours | fixed) if ids else None for ids in own]
    if True not in state:
        return []
    found = []
    for i, child in enumerate(children):
        before = next((s for s in reversed(state[:i]) if s is not None), True)
        after = next((s for s in state[i + 1 :] if s is not None), True)
        if state[i] is None and before and after:
            found.append(child)
    return found
