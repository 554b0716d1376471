"""A classifier's last layer fitted on the features that reach it, apart from the rest of the model."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lightning_cl.memory import find_labels

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
_ITERATIONS = 20


class Probe(NamedTuple):
    """A fitted head.

    Attributes:
        weights: Its parameters by name.
        loss: Cross-entropy on held out samples.
        guess: That of always predicting the frequencies of the classes.
    """

    weights: dict[str, Tensor]
    loss: float
    guess: float


class NoProbe(Exception):
    """Says why a head cannot be fitted apart."""


def fit_head(head: nn.Module, forward: Callable[[Any], Any], fit: Sequence[Any], held: Sequence[Any]) -> Probe:
    """Fit ``head`` by L-BFGS on the inputs that ``forward(batch)`` gives it; nothing of it is changed.

    The loss is the cross-entropy with an L2 penalty in units of the features' variance; the strength is the best of
    five on the held out batches.

    Args:
        head: Part of a model, called once in ``forward`` with a tensor (N, ...), gives logits (N, C).
        forward: Runs the model on a batch.
        fit: Batches.
        held: Batches to judge by.

    Raises:
        NoProbe: If the head, or the labels, are of another kind.
    """
    parts = [_captured(head, forward, batches) for batches in (fit, held)]
    (x, y), (z, t) = parts
    weights = {name: p.detach().clone() for name, p in head.named_parameters()}
    scale = float(x.double().var(0, unbiased=False).mean())
    best: tuple[float, dict[str, Tensor]] | None = None
    for strength in STRENGTHS:
        weights = _fitted(head, weights, x, y, strength * scale)
        loss = float(cross_entropy(functional_call(head, weights, (z,)).float(), t))
        if best is None or loss < best[0]:
            best = loss, {name: w.clone() for name, w in weights.items()}
    assert best is not None
    count = torch.cat([y, t]).bincount().double()
    frequencies = count[count > 0] / count.sum()
    return Probe(best[1], best[0], -float((frequencies * frequencies.log()).sum()))


def _captured(head: nn.Module, forward: Callable[[Any], Any], batches: Sequence[Any]) -> tuple[Tensor, Tensor]:
    seen: list[tuple[Any, Any]] = []
    hook = head.register_forward_hook(lambda _, inputs, output: seen.append((inputs, output)))
    found, labels = [], []
    try:
        for batch in batches:
            seen.clear()
            with torch.no_grad():
                forward(batch)
            y = find_labels(batch)
            if len(seen) != 1 or len(seen[0][0]) != 1 or not isinstance(seen[0][0][0], Tensor):
                raise NoProbe(f"the head is called {len(seen)} times, or not with one tensor")
            x, logits = seen[0][0][0], seen[0][1]
            if y is None or not isinstance(logits, Tensor) or logits.shape[:-1] != y.shape:
                raise NoProbe("there are no integer labels beside logits (N, C)")
            if len(y) and (int(y.min()) < 0 or int(y.max()) >= logits.shape[1]):
                raise NoProbe(f"labels do not lie in [0, {logits.shape[1]})")
            found.append(x.detach())
            labels.append(y.to(x.device).long())
    finally:
        hook.remove()
    return torch.cat(found), torch.cat(labels)


def _fitted(head: nn.Module, start: dict[str, Tensor], x: Tensor, y: Tensor, decay: float) -> dict[str, Tensor]:
    weights = {name: w.clone().requires_grad_() for name, w in start.items()}
    optimizer = torch.optim.LBFGS(list(weights.values()), max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        penalty = torch.stack([w.square().sum() for w in weights.values() if w.dim() > 1]).sum()
        loss = cross_entropy(functional_call(head, weights, (x,)).float(), y) + 0.5 * decay * penalty
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return {name: w.detach() for name, w in weights.items()}
