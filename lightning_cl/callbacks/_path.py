"""What happens to parameters from right before an optimizer's step to right after it, summed over steps."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.path_integral import add_path_integral_, with_corner


class PathIntegral:
    """Path integrals of parameters by name, since :meth:`clear` or since each was first seen.

    Between :meth:`take` and :meth:`add` lies one step; a step that is not followed by :meth:`add` counts for nothing.
    The movement is the real one, of whatever optimizer. Rows that a parameter gains start where they are then.

    State: two tensors per parameter, fp32 or wider. Beside them, two buffers of the parameters' sizes.
    """

    def __init__(self) -> None:
        self.integral: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._before: dict[str, Tensor] = {}
        self._taken: set[str] = set()

    @torch.no_grad()
    def take(self, named: Mapping[str, Tensor], optimizer: Any) -> dict[str, Tensor]:
        """Copy gradients and weights before a step; returns the copies of the gradients, which may be changed."""
        self._watch(named)
        found = {name: p for name, p in named.items() if p.grad is not None}
        for name, parameter in found.items():
            for buffers in (self._gradients, self._before):
                known = buffers.get(name)
                if known is None or known.shape != parameter.shape or known.device != parameter.device:
                    buffers[name] = torch.empty_like(parameter)
        gradients, before = _of(self._gradients, list(found)), _of(self._before, list(found))
        if found:
            torch._foreach_copy_(gradients, [_dense(p.grad) for p in found.values()])
            torch._foreach_copy_(before, list(found.values()))
        risen = {id(p) for group in optimizer.param_groups if group.get("maximize") for p in group["params"]}
        for name in found if risen else ():
            if id(found[name]) in risen:
                self._gradients[name].neg_()
        self._taken |= found.keys()
        return {name: self._gradients[name] for name in found}

    @torch.no_grad()
    def add(self, named: Mapping[str, Tensor]) -> list[str]:
        """The step has been made; returns the names of the parameters that were in it."""
        names = [name for name in named if name in self._taken]
        self._taken.difference_update(names)
        integrals, gradients, before = (_of(t, names) for t in (self.integral, self._gradients, self._before))
        add_path_integral_(integrals, gradients, before, _of(named, names))
        return names

    def gradient(self, name: str) -> Tensor:
        """The copy that the latest step of this parameter began with."""
        return self._gradients[name]

    def restart(self, names: Sequence[str], named: Mapping[str, Tensor]) -> None:
        """Begin anew at the present values of these parameters."""
        for name in names:
            self.integral[name].zero_()
            self.start[name].copy_(named[name].detach())

    def clear(self) -> None:
        """Forget everything."""
        for store in (self.integral, self.start, self._gradients, self._before, self._taken):
            store.clear()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the integrals and of where they began."""
        return {
            kind: {name: value.clone() for name, value in getattr(self, kind).items()} for kind in ("integral", "start")
        }

    def load(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Read what :meth:`state` returned."""
        self.clear()
        for kind in ("integral", "start"):
            getattr(self, kind).update({name: value.clone() for name, value in state[kind].items()})

    def _watch(self, named: Mapping[str, Tensor]) -> None:
        for name, parameter in named.items():
            known = self.start.get(name)
            if known is not None and known.shape == parameter.shape and known.device == parameter.device:
                continue
            # frozen until now, so it still is where the task began
            start = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
            integral = torch.zeros_like(start)
            if known is not None:
                start, integral = with_corner(start, known), with_corner(integral, self.integral[name])
            self.start[name], self.integral[name] = start, integral


def _dense(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    return gradient.to_dense() if gradient.is_sparse else gradient


def _of(tensors: Mapping[str, Tensor], names: Sequence[str]) -> list[Tensor]:
    return [tensors[name] for name in names]
