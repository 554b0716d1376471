"""LogME: how well features explain labels, without training anything."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_DECADES = 10


def logme(features: Tensor, labels: Tensor, *, intercept: bool = False) -> float:
    r"""Logarithm of the maximum evidence per sample (You et al. 2021, arXiv:2102.11005); larger is better.

    Each class is a regression of its indicator y on the features F (N, D), ``y ~ N(F w, 1/beta)`` with the prior
    ``w ~ N(0, 1/alpha)``. Its log evidence per sample,

    ``1/2N [N log beta + D log alpha - N log 2 pi - beta |Fm - y|^2 - alpha |m|^2 - log |A|]``,
    ``A = alpha I + beta F'F``, ``m = beta A^-1 F'y``,

    is maximised over alpha and beta, and averaged over the classes that occur. The paper iterates a fixed point; here
    beta is eliminated, and the best ``t = alpha / beta`` is looked for on a grid and then to ten digits, so that the
    maximum is the global one. One eigendecomposition, of F'F or FF', the smaller one, serves all classes; in float64.
    The scale of the features does not matter. As in the paper there is no intercept: the features have to explain how
    frequent a class is, too, which centred ones cannot. With ``intercept=True``, ``y ~ N(F w + b, 1/beta)`` with a flat
    prior on b, which is the above for centred F and y, with N - 1 in place of N.

    Args:
        features: (N, D).
        labels: (N,) long.
        intercept: Whether each class has a constant of its own.

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
    if not f.isfinite().all() or bool((f == (f[0] if intercept else 0)).all()):
        raise ValueError("features that are not finite, or all the same; expected others")
    y = (labels[:, None] == classes).to(f)
    n = len(y)
    if intercept:
        f, y, n = f - f.mean(0), y - y.mean(0), n - 1
    squares, projected = _spectrum(f, y)
    outside = (y.square().sum(0) - projected.square().sum(0)).clamp(min=0)

    def evidence(log_t: Tensor) -> Tensor:
        """Of each class (C,) at its own t, with the best beta for it, N / (|Fm - y|^2 + t |m|^2)."""
        shrunk = log_t.exp() / (log_t.exp() + squares[:, None])
        misfit = (projected.square() * shrunk).sum(0) + outside
        return 0.5 * (shrunk.log().sum(0) / n - (2 * math.pi * misfit / n).log() - 1)

    return float(evidence(_argmax(evidence, squares, len(classes))).mean())


def _argmax(evidence: Callable[[Tensor], Tensor], squares: Tensor, n_classes: int) -> Tensor:
    """log t (C,) of each class: the best of a grid, then a golden section around it."""
    top = float(squares[-1].log())
    # labels that are fitted exactly have no finite evidence at t = 0
    grid = torch.linspace(top - _DECADES * math.log(10), top + _DECADES * math.log(10), 10 * _DECADES).to(squares)
    best = torch.stack([evidence(point.expand(n_classes)) for point in grid]).argmax(0)
    step = grid[1] - grid[0]
    low, high = grid[best] - step, grid[best] + step
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(45):
        left, right = high - golden * (high - low), low + golden * (high - low)
        in_left = evidence(left) > evidence(right)
        low, high = torch.where(in_left, low, left), torch.where(in_left, right, high)
    return (low + high) / 2


def _spectrum(f: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values (k,) of the features and ``U'y`` (k, C), those of rounding noise left out."""
    n, d = f.shape
    squares, vectors = torch.linalg.eigh(f.T @ f if d <= n else f @ f.T)
    kept = squares > squares[-1] * max(n, d) * torch.finfo(f.dtype).eps
    squares, vectors = squares[kept], vectors[:, kept]
    if d <= n:
        return squares, (vectors.T @ (f.T @ y)) / squares.sqrt()[:, None]
    return squares, vectors.T @ y
