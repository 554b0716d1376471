"""Gradients projected so that, to first order, the loss on earlier tasks does not rise."""

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor]


@torch.no_grad()
def project_agem(gradient: Gradient, reference: Gradient) -> list[Tensor]:
    r"""The nearest gradient that has no negative component along one reference gradient: A-GEM.

    .. math:: \tilde g = g - \frac{g^\top g_{ref}}{g_{ref}^\top g_{ref}}\, g_{ref} \quad\text{if } g^\top g_{ref} < 0

    Chaudhry et al. 2019, arXiv:1812.00420. The dot products are over all tensors together.

    Args:
        gradient: Tensors of any shapes.
        reference: Tensors of the same shapes.

    Returns:
        New tensors; or the tensors of ``gradient`` themselves where nothing is violated, or where a dot product is not
        finite (a step that a gradient scaler will skip, a reference that has overflown).

    Example:
        >>> [t.tolist() for t in project_agem([torch.tensor([1.0, -1.0])], [torch.tensor([0.0, 2.0])])]
        [[1.0, 0.0]]
    """
    _check(gradient, [reference])
    # wide: in half precision a dot product of many entries overflows
    products = torch.stack([_dot(gradient, reference), _dot(reference, reference)]).tolist()
    if not (-float("inf") < products[0] < 0 < products[1] < float("inf")):
        return list(gradient)
    share = products[0] / products[1]
    return [(g - share * r).to(g.dtype) for g, r in zip(gradient, reference, strict=True)]


@torch.no_grad()
def project_gem(
    gradient: Gradient, references: Sequence[Gradient], margin: float = 0.5, epsilon: float = 1e-3
) -> list[Tensor]:
    r"""The nearest gradient that violates none of several reference gradients: GEM.

    Where some :math:`g^\top g_k < 0`, the result is :math:`\tilde g = g + G^\top v` with the rows :math:`g_k` of G and

    .. math:: v = \arg\min_{v \ge m} \tfrac12 v^\top (G G^\top + \epsilon I)\, v + g^\top G^\top v ,

    the dual of :math:`\min \|\tilde g - g\|^2` under :math:`G \tilde g \ge 0`. A margin m > 0 asks for a part of every
    reference gradient, which favours the earlier tasks. Lopez-Paz & Ranzato 2017, arXiv:1706.08840; as in their code,
    nothing is changed while nothing is violated, and :math:`\epsilon` keeps the problem strictly convex. Solved by
    ``quadprog`` in float64; K x K numbers for K references travel to the CPU.

    Args:
        gradient: Tensors of any shapes.
        references: K lists of tensors of the same shapes.
        margin: m, >= 0.
        epsilon: Added to the diagonal, > 0.

    Returns:
        New tensors; or the tensors of ``gradient`` themselves where nothing is violated, or where a dot product is not
        finite.

    Raises:
        ImportError: If a projection is needed and ``quadprog`` is not installed.

    Example:
        >>> [t.tolist() for t in project_gem([torch.tensor([1.0, 1.0])], [[torch.tensor([1.0, 0.0])]])]
        [[1.0, 1.0]]
    """
    _check(gradient, references)
    if not references:
        return list(gradient)
    towards = torch.stack([_dot(gradient, reference) for reference in references]).double().cpu()
    if not bool(towards.isfinite().all()) or not bool((towards < 0).any()):
        return list(gradient)
    gram = torch.zeros(len(references), len(references), dtype=torch.float64)
    for tensors in zip(*references, strict=True):
        rows = torch.stack([_wide(t.flatten()) for t in tensors])
        gram += (rows @ rows.T).double().cpu()
    if not bool(gram.isfinite().all()):
        return list(gradient)
    import quadprog

    n = len(references)
    convex = (gram + gram.T) / 2 + epsilon * torch.eye(n, dtype=torch.float64)
    bound = torch.full((n,), float(margin), dtype=torch.float64)
    # its objective has a minus before the linear part
    v = quadprog.solve_qp(convex.numpy(), -towards.numpy(), torch.eye(n, dtype=torch.float64).numpy(), bound.numpy())[0]
    projected = []
    for position, g in enumerate(gradient):
        moved = g
        for weight, reference in zip(v.tolist(), references, strict=True):
            moved = moved + weight * reference[position]
        projected.append(moved.to(g.dtype))
    return projected


def _dot(a: Gradient, b: Gradient) -> Tensor:
    """Over all tensors together, in fp32 or wider; 0-dimensional."""
    terms = [torch.dot(_wide(x.flatten()), _wide(y.flatten())) for x, y in zip(a, b, strict=True)]
    return torch.stack([term.to(terms[0].device) for term in terms]).sum()


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _check(gradient: Gradient, references: Sequence[Gradient]) -> None:
    """Raise ValueError for an empty gradient, or references of other shapes."""
    shapes = [tuple(t.shape) for t in gradient]
    if not shapes:
        raise ValueError("a gradient without tensors; expected at least one. HINT: train something")
    for reference in references:
        if [tuple(t.shape) for t in reference] != shapes:
            raise ValueError(
                f"a reference gradient of shapes {[tuple(t.shape) for t in reference]}; expected {shapes}. "
                "HINT: take both of the same parameters, with zeros for those without a gradient"
            )
