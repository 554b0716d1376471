"""RWalk's score of each parameter along a task."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_cl.callbacks._path import PathIntegral
from lightning_cl.functional.path_integral import moving_average, riemannian_score, with_corner


class RiemannianPath:
    """Scores over intervals of a few steps, and the running Fisher that measures the way in each.

    Parameters have intervals of their own, so those that thaw later, or belong to another optimizer, need no care.

    State: five tensors per parameter: path integral, weights at the start and sum of squared gradients of the present
    interval; running Fisher; score. Beside them two buffers of the parameters' sizes.

    Args:
        interval: Optimizer steps of an interval.
        alpha: Weight of an interval in the running Fisher.
        epsilon: Damping of the score.
    """

    STORES = ("squares", "running", "score")

    def __init__(self, interval: int, alpha: float, epsilon: float) -> None:
        self.interval, self.alpha, self.epsilon = interval, alpha, epsilon
        self.path = PathIntegral()
        self.squares: dict[str, Tensor] = {}
        self.running: dict[str, Tensor] = {}
        self.score: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def take(self, named: Mapping[str, Tensor], optimizer: Any) -> None:
        """Copy the gradients of the task's own loss, and the weights, before a step."""
        self.path.take(named, optimizer)

    @torch.no_grad()
    def add(self, named: Mapping[str, Tensor]) -> None:
        """The step has been made."""
        stepped = self.path.add(named)
        for name in stepped:
            gradient, integral = self.path.gradient(name), self.path.integral[name]
            known = self.squares.get(name)
            if known is None or known.shape != integral.shape or known.device != integral.device:
                fresh = torch.zeros_like(integral)
                self.squares[name] = fresh if known is None else with_corner(fresh, known)
            self.squares[name].addcmul_(gradient.to(integral.dtype), gradient.to(integral.dtype))
            self.steps[name] = self.steps.get(name, 0) + 1
        self._close([name for name in stepped if self.steps[name] >= self.interval], named)

    @torch.no_grad()
    def finish(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Close the intervals that are not full; returns the task's scores."""
        self._close([name for name, steps in self.steps.items() if steps and name in named], named)
        return dict(self.score)

    def clear(self) -> None:
        """Another task begins: the running Fisher goes on."""
        self.path.clear()
        for store in (self.squares, self.score, self.steps):
            store.clear()

    def state(self) -> dict[str, Any]:
        """Copies of everything."""
        kept = {kind: {name: value.clone() for name, value in getattr(self, kind).items()} for kind in self.STORES}
        return {"path": self.path.state(), "steps": dict(self.steps), **kept}

    def load(self, state: Mapping[str, Any]) -> None:
        """Read what :meth:`state` returned."""
        self.path.load(state["path"])
        self.steps = dict(state["steps"])
        for kind in self.STORES:
            setattr(self, kind, {name: value.clone() for name, value in state[kind].items()})

    def _close(self, names: Iterable[str], named: Mapping[str, Tensor]) -> None:
        names = list(names)
        for name in names:
            integral, start = self.path.integral[name], self.path.start[name]
            fisher = self.squares[name] / self.steps[name]
            before = self.running.get(name)
            # the distance is measured with the Fisher where the interval began, but the first one has only its own
            measure = fisher if before is None else with_corner(fisher, before)
            score = riemannian_score(integral, measure, start, named[name].detach(), self.epsilon)
            known = self.score.get(name)
            self.score[name] = score if known is None else score + with_corner(torch.zeros_like(score), known)
            self.running[name] = moving_average(before, fisher, self.alpha)
            self.squares[name].zero_()
            self.steps[name] = 0
        self.path.restart(names, named)
