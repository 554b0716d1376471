"""An optimizer's parameters beside their importances and anchors, and the two ways of applying the penalty to them."""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from lightning_cl._sharded_tensors import local, shard_like
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import add_quadratic_gradient_
from lightning_cl.functional.proximal import Rate, proximal_step_, rule_of, step_rates


class PenaltyPlan:
    """What one optimizer's steps have to do with the penalty; good until other parameters are trainable.

    Args:
        optimizer: The optimizer.
        selected: Name to trainable parameter that the penalty may have to do with.
        importance, anchor: Name to tensor; moved to the parameters' devices, padded to their shapes and sharded as
            they are, in place.
    """

    def __init__(
        self,
        optimizer: Any,
        selected: Mapping[str, Tensor],
        importance: MutableMapping[str, Tensor],
        anchor: MutableMapping[str, Tensor],
    ) -> None:
        self._count = _trainable(optimizer)
        owner = {id(p): index for index, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self.named = {name: parameter for name, parameter in selected.items() if id(parameter) in owner}
        # parameters, importances, anchors of each group
        self._groups: dict[int, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}
        for name, parameter in self.named.items():
            if name not in importance:
                continue
            for store in (importance, anchor):
                store[name] = shard_like(store[name], parameter)
            group = self._groups.setdefault(owner[id(parameter)], ([], [], []))
            for tensors, tensor in zip(group, (parameter, importance[name], anchor[name]), strict=True):
                tensors.append(tensor)

    def is_current(self, optimizer: Any) -> bool:
        """Whether the same parameters are trainable as when it was made: a schedule may thaw some between two steps."""
        return self._count == _trainable(optimizer) and all(p.requires_grad for p in self.named.values())

    @property
    def is_empty(self) -> bool:
        """No parameter has a penalty."""
        return not self._groups

    def add_gradient(self, optimizer: Any, strength: float) -> None:
        """Add ``strength * importance * (theta - anchor)`` to ``.grad``; zeros stand for gradients that are None."""
        merged: dict[bool, tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]] = {}
        for index, (parameters, importances, anchors) in self._groups.items():
            maximize = bool(optimizer.param_groups[index].get("maximize"))
            together = merged.setdefault(maximize, ([], [], [], []))
            for tensors, more in zip(together, (parameters, _gradients(parameters), importances, anchors), strict=True):
                tensors.extend(more)
        for maximize, columns in merged.items():
            # such an optimizer turns the sign of what is in .grad
            parameters, gradients, importances, anchors = ([local(tensor) for tensor in column] for column in columns)
            signed = -strength if maximize else strength
            add_quadratic_gradient_(parameters, gradients, importances, anchors, signed)

    def proximal_step(self, optimizer: Any, strength: float) -> None:
        """The proximal step behind the optimizer's, for the parameters that were in it."""
        rows: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        rates: list[Any] = []
        for index, group in self._groups.items():
            stepped = [i for i, parameter in enumerate(group[0]) if parameter.grad is not None]
            kept = [[tensors[i] for i in stepped] for tensors in group]
            found = step_rates(optimizer, optimizer.param_groups[index], kept[0])
            rates += [rate._replace(moment=local(rate.moment)) if isinstance(rate, Rate) else rate for rate in found]
            for tensors, more in zip(rows, kept, strict=True):
                tensors.extend(map(local, more))
        proximal_step_(*rows, strength, rates)


def refuse_unknown_steps(optimizers: Iterable[Any]) -> None:
    """Refuse optimizers behind whose steps the proximal one would have an unknown length.

    Raises:
        InputError: With the optimizer's name.
    """
    for optimizer in optimizers:
        try:
            rule_of(optimizer)
        except ValueError as error:
            given, _, rest = str(error).partition("; expected ")
            raise InputError(
                f"{given} with apply='proximal'",
                rest.partition(". HINT: ")[0],
                "take one of these, or apply='gradient'",
            ) from error


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    gradients = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    return gradients


def _trainable(optimizer: Any) -> int:
    return sum(p.requires_grad for group in optimizer.param_groups for p in group["params"])
