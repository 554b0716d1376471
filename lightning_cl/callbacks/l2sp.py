"""The pull towards pretrained weights."""

import logging
import re
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import nn

from lightning_cl._sharded_tensors import shard_like, whole_tensor
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.errors import InputError
from lightning_cl.finetuning._adapter_layers import within
from lightning_cl.finetuning._find_head import find_heads
from lightning_cl.finetuning.depth_groups import depth_groups
from lightning_cl.functional.path_integral import with_corner

log = logging.getLogger(__name__)


class L2SP(QuadraticPenalty):
    r"""Keeps a model that is fine-tuned near its pretrained weights (Li, Grandvalet & Davoine 2018, arXiv:1802.01483).

    .. math:: \frac{\lambda}{2} \sum_{i \in S} (\theta_i - \theta^0_i)^2 + \frac{\beta}{2} \sum_{i \notin S} \theta_i^2

    S are the parameters of the pretrained model, :math:`\theta^0` their values when the first ``fit`` starts (or at
    :meth:`consolidate`, called before it). The head is not in S, nor are parameters and rows that come later. It acts
    from the first step on, so one ``fit`` is enough, and the anchor stays the same for all that follow. Use it in place
    of weight decay: set that of the optimizer to 0. Lambda and beta are the paper's alpha and beta.

    State: importance and anchor, two tensors per trainable parameter, and names. What is frozen at first joins when it
    thaws. No pass over the data.

    Args:
        lambda_: Strength of the pull towards the pretrained weights, >= 0; with 0 beta is off too.
        beta: Strength of the pull of the others towards zero, >= 0. A ``lambda_schedule`` is for both.
        head: Regular expressions on the names of the head's parameters, ``[]`` for none. By default those of the
            module's ``head``, or else of the classifier that :func:`~lightning_cl.finetuning.replace_head` would find,
            or else of the last ``nn.Linear`` of the depth groups' head; the log says which.
        name, apply, lambda_schedule, include, exclude, consolidate, select, state_path: See
            :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`. It has no ``importance_path``, and ``normalize``
            does nothing.

    Raises:
        InputError: For values outside these ranges, a head that is not found, or what every penalty refuses.
    """

    needs_data = False
    supports_sharding = True
    needs_boundary = False

    def __init__(
        self,
        lambda_: float,
        *,
        beta: float = 0.01,
        head: str | Sequence[str] | None = None,
        name: str = "l2sp",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        if lambda_ == "auto":
            raise InputError("lambda_='auto' with L2SP", "a number", "try lambda_=0.01")
        super().__init__(lambda_, name=name, **penalty)
        if self.importance_path is not None:
            raise InputError(
                "importance_path with L2SP", "the pretrained weights alone", "take EWC(importance_path=...)"
            )
        if not isinstance(beta, int | float) or not 0 <= beta < float("inf"):
            raise InputError(f"beta={beta!r}", "a finite number >= 0", "beta=0.01 is the default")
        try:
            self.head = [re.compile(pattern) for pattern in ([head] if isinstance(head, str) else head or [])]
        except (re.error, TypeError) as error:
            raise InputError(
                f"head={head!r} ({error})", "a regular expression, or a list of them", "head='fc'"
            ) from error
        self.beta, self.find_head = float(beta), head is None
        self._pretrained: list[str] = []

    @property
    def _held(self) -> list[str]:
        return [name for name in self._pretrained if name in self.importance]

    def _on_task_start(self, trainer: Any, module: Any) -> None:
        self._cover(module)

    def _plan(self, module: Any, optimizer: Any) -> Any:
        known = self._plans.get(id(optimizer))
        if known is None or not known.is_current(optimizer):
            self._cover(module)
        return super()._plan(module, optimizer)

    @torch.no_grad()
    def _cover(self, module: Any) -> None:
        """Give every trainable parameter that has none its importance and anchor."""
        if not self._pretrained:
            head = self._head_of(module)
            self._pretrained = [name for name, _ in module.named_parameters() if name not in head]
            log.info(
                "L2SP: %s towards zero, the others towards their present values", ", ".join(sorted(head)) or "none"
            )
        # over lambda, which stands before all of them
        share = self.beta / float(self.lambda_) if self.lambda_ else 0.0
        importance, anchor = dict(self.importance), dict(self.anchor)
        shapes = {name: value.shape for name, value in anchor.items()}
        new = {name: p for name, p in self._selected(module).items() if shapes.get(name) != p.shape}
        for name, parameter in new.items():
            wide = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            if name in anchor:
                rows = torch.full(wide.shape, share, dtype=wide.dtype, device=wide.device)
                importance[name] = shard_like(with_corner(rows, whole_tensor(importance[name])), wide)
                anchor[name] = shard_like(anchor[name].to(wide.dtype), wide)
            elif name in self._pretrained:
                # frozen until now, so it still is what it was
                importance[name], anchor[name] = torch.ones_like(wide), wide
            else:
                importance[name], anchor[name] = torch.full_like(wide, share), torch.zeros_like(wide)
        if new:
            self._keep(importance, anchor)

    def _head_of(self, module: Any) -> set[str]:
        """Names of the head's parameters."""
        named = [name for name, _ in module.named_parameters()]
        if not self.find_head:
            for pattern in self.head:
                if not any(pattern.search(name) for name in named):
                    some = ", ".join(named[-4:])
                    raise InputError(f"head={pattern.pattern!r}", "a name of some parameter", f"some are {some}")
            return {name for name in named if any(pattern.search(name) for pattern in self.head)}
        head = getattr(module, "head", None)
        own = isinstance(head, nn.Module) and next(head.parameters(), None) is not None
        layers = ["head"] if own else _classifiers(module)
        return {name for name in named if within(name, layers)}

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self._cover(module)
        self._started = False
        self._forget_plans()

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "pretrained": list(self._pretrained)}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._pretrained = list(state["pretrained"])


def _classifiers(module: nn.Module) -> list[str]:
    """Names of the layers that ``replace_head`` would replace, or of the last Linear layer of the head's group."""
    try:
        return find_heads(module)
    except InputError:
        linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not linear:
        raise InputError(
            f"{type(module).__name__} without a head or an nn.Linear",
            "a head that can be found",
            "give head='fc', or head=[]",
        )
    group = next((group for group in depth_groups(module) if group.name == "head"), None)
    inside = [name for name in linear if group and any(within(each, [name]) for each in group.parameters)]
    return [(inside or linear)[-1]]
