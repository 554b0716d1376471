"""Weights of the loss on the current batch and of that on the past."""

from collections.abc import Sequence
from typing import Any


def two_weights(weights: Any) -> bool:
    """Whether these are two finite numbers >= 0."""
    try:
        return len(weights) == 2 and all(0 <= weight < float("inf") for weight in weights)
    except TypeError:
        return False


def loss_weights(weights: str | Sequence[float], n_tasks: int) -> tuple[float, float]:
    """The pair that is given, or 1/k and 1 - 1/k in task k (from 1) if it is a word; ``n_tasks`` have been learnt."""
    if not isinstance(weights, str):
        current, past = weights
        return float(current), float(past)
    share = 1 / (n_tasks + 1)
    return share, 1 - share
