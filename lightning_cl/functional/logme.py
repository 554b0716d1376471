"""LogME: how well features explain labels, without training anything."""

import math

import torch
from torch import Tensor


def logme(features: Tensor, labels: Tensor, *, max_iterations: int = 1000, tolerance: float = 1e-9) -> float:
    r"""Logarithm of the maximum evidence per sample (You et al. 2021, arXiv:2102.11005); larger is better.

    Each class is a regression of its indicator y on the features F (N, D), ``y ~ N(F w, 1/beta)`` with the prior
    ``w ~ N(0, 1/alpha)``. Its log evidence per sample,

    ``1/2N [N log beta + D log alpha - N log 2 pi - beta |Fm - y|^2 - alpha |m|^2 - log |A|]``,
    ``A = alpha I + beta F'F``, ``m = beta A^-1 F'y``,

    is maximised over alpha and beta by MacKay's fixed point, and averaged over the classes that occur. One
    eigendecomposition, of F'F or FF', the smaller one, serves all classes; computed in float64. The scale of the
    features does not matter; as in the paper there is no intercept.

    Args:
        features: (N, D).
        labels: (N,) long.
        max_iterations: Of the fixed point.
        tolerance: Largest relative change of alpha / beta at which it ends.

    Raises:
        ValueError: For shapes that do not fit, fewer than two classes, or features that are not finite or all zero.

    Example:
        >>> features = torch.tensor([[1.0, 0.1], [0.9, 0.0], [0.0, 1.0], [0.1, 1.1]])
        >>> bool(logme(features, torch.tensor([0, 0, 1, 1])) > logme(features, torch.tensor([0, 1, 0, 1])))
        True
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features {tuple(features.shape)}, labels {tuple(labels.shape)}; expected (N, D) and (N,)")
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(f"{len(classes)} class in {len(labels)} labels; expected two at least")
    f = features.detach().double()
    if not f.isfinite().all() or not f.any():
        raise ValueError("features that are not finite, or all zero; expected others")
    y = (labels[:, None] == classes).to(f)
    squares, projected = _spectrum(f, y)
    alpha, beta = _evidence_maximum(squares, projected, y, max_iterations, tolerance)
    return float((_log_evidence(squares, projected, y, alpha, beta) / len(y)).mean())


def _spectrum(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values (k,) of the features and ``U'y`` (k, C), those of rounding noise left out."""
    n, d = f.shape
    squares, vectors = torch.linalg.eigh(f.T @ f if d <= n else f @ f.T)
    kept = squares > squares[-1] * max(n, d) * torch.finfo(f.dtype).eps
    squares, vectors = squares[kept], vectors[:, kept]
    if d <= n:
        return squares, (vectors.T @ (f.T @ y)) / squares.sqrt()[:, None]
    return squares, vectors.T @ y


def _evidence_maximum(
    squares: Tensor, projected: Tensor, y: Tensor, max_iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """alpha and beta (C,) of each class."""
    n = len(y)
    alpha, beta = (torch.ones(y.shape[1], dtype=y.dtype, device=y.device) for _ in range(2))
    for _ in range(max_iterations):
        weight, residual = _weight_and_residual(squares, projected, y, alpha, beta)
        effective = (beta * squares[:, None] / (alpha + beta * squares[:, None])).sum(0)
        before = alpha / beta
        alpha, beta = effective / weight, (n - effective).clamp(min=1e-12 * n) / residual
        if ((alpha / beta - before).abs() <= tolerance * before).all():
            break
    return alpha, beta


def _weight_and_residual(
    squares: Tensor, projected: Tensor, y: Tensor, alpha: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """``|m|^2`` and ``|Fm - y|^2`` (C,), kept from zero: labels that are fitted exactly have no finite evidence."""
    total = alpha + beta * squares[:, None]
    weight = (squares[:, None] * (beta * projected / total) ** 2).sum(0)
    outside = (y.square().sum(0) - projected.square().sum(0)).clamp(min=0)
    residual = ((alpha * projected / total) ** 2).sum(0) + outside
    return weight.clamp(min=1e-12 / squares[-1]), residual.clamp(min=1e-10 * len(y))


def _log_evidence(squares: Tensor, projected: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    n, k = len(y), len(squares)
    weight, residual = _weight_and_residual(squares, projected, y, alpha, beta)
    # D log alpha - log |A|, of which the D - k directions that no feature has cancel
    determinant = k * alpha.log() - (alpha + beta * squares[:, None]).log().sum(0)
    return 0.5 * (n * (beta.log() - math.log(2 * math.pi)) - beta * residual - alpha * weight + determinant)
