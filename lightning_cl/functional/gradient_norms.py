"""How much each part of a network is pulled by a loss, relative to its size."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GroupNorms:
    """Norms of one group of parameters.

    Args:
        gradient: Mean over batches of the group's gradient norm.
        weight: Norm of the group's weights.
        relative: ``gradient / weight``; 0 for a group of zeros.
    """

    gradient: float
    weight: float
    relative: float


def relative_gradient_norms(
    gradients: Iterable[Mapping[str, Tensor | None]],
    weights: Mapping[str, Tensor],
    groups: Mapping[str, Sequence[str]],
) -> dict[str, GroupNorms]:
    r"""The relative gradient norm (RGN) of each group, ``mean_b ||g_b|| / ||w||`` (Lee et al. 2022, arXiv:2210.11466).

    Norms are Euclidean, over all parameters of a group together, in float64. The paper takes them tensor by tensor;
    a group as a whole keeps a bias that is still close to zero from deciding for its block.

    Args:
        gradients: For each batch the gradients by name; None or absent where the loss does not reach a parameter.
        weights: The parameters by name.
        groups: Names of the parameters of each group.

    Raises:
        ValueError: For no batches, a name without weights, or norms that are not finite.

    Example:
        >>> gradients, weights = [{"w": torch.tensor([3.0, 4.0])}], {"w": torch.tensor([0.0, 2.0])}
        >>> found = relative_gradient_norms(gradients, weights, {"a": ["w"]})
        >>> found["a"]
        GroupNorms(gradient=5.0, weight=2.0, relative=2.5)
    """
    unknown = [name for names in groups.values() for name in names if name not in weights]
    if unknown:
        raise ValueError(f"no weights of {unknown[0]!r}; expected those of every parameter in a group")
    sums = dict.fromkeys(groups, 0.0)
    batches = 0
    for found in gradients:
        batches += 1
        for group, names in groups.items():
            sums[group] += _norm([found.get(name) for name in names])
    if batches == 0:
        raise ValueError("no gradients; expected those of one batch at least")
    norms = {}
    for group, names in groups.items():
        gradient, weight = sums[group] / batches, _norm([weights[name] for name in names])
        if not torch.tensor([gradient, weight], dtype=torch.float64).isfinite().all():
            raise ValueError(f"gradient norm {gradient}, weight norm {weight} of group {group!r}; expected finite ones")
        norms[group] = GroupNorms(gradient, weight, gradient / weight if weight > 0 else 0.0)
    return norms


def relative_rates(norms: Mapping[str, GroupNorms]) -> dict[str, float]:
    """Auto-RGN: each group's learning rate as a multiple of the base rate, its RGN over the largest one; in [0, 1].

    Args:
        norms: From :func:`relative_gradient_norms`.

    Example:
        >>> relative_rates({"stem": GroupNorms(1.0, 4.0, 0.25), "head": GroupNorms(1.0, 1.0, 1.0)})
        {'stem': 0.25, 'head': 1.0}
    """
    largest = max((norm.relative for norm in norms.values()), default=0.0)
    return {group: norm.relative / largest if largest > 0 else 0.0 for group, norm in norms.items()}


def _norm(tensors: Iterable[Tensor | None]) -> float:
    squares = [
        t.detach().double().square().sum().cpu()
        if not t.is_sparse
        else t.detach().coalesce().values().double().square().sum().cpu()
        for t in tensors
        if t is not None
    ]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
