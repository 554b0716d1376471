"""Which gradients of a sample are squared, as vectors to be pulled back from the outputs through the network.

For a sample n, ``sum_k (J_n^T v_kn)^2`` with J the Jacobian of the outputs is what is wanted: the expected square of
the gradient of the negative log-likelihood, over the labels that a mode asks for.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LABELS = ("exact", "mc", "empirical", "predicted", "probability_weighted", "top_k", "batch_mean")
LIKELIHOODS = ("classification", "multi_label", "gaussian")
_INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8)
IGNORED = -100


@dataclass(frozen=True)
class Labels:
    """A label mode with its settings; see :func:`lightning_cl.functional.diagonal_fisher`."""

    mode: str = "exact"
    likelihood: str = "classification"
    n_draws: int = 1
    top_k: int = 10


class Cotangents:
    """The K vectors of a batch. One is built when it is asked for: C of them at once would be N * C * C numbers.

    Args:
        count: K.
        support: Boolean, the shape of the outputs: where a gradient may come from at all.
    """

    def __init__(self, count: int, support: Tensor) -> None:
        self.count, self.support = count, support
        self.dtype = torch.float32

    def __len__(self) -> int:
        return self.count

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        """``v_k`` of these samples, in the outputs' dtype."""
        raise NotImplementedError


class Columns(Cotangents):
    r"""Exact expectations over independent outputs: one vector ``scale_c e_c`` per output column and position.

    Multi-label: ``scale = sqrt(s_c (1 - s_c))``. Gaussian: 1.

    Args:
        scale: ``(N, P, C)``.
        outputs: For shape and dtype.
    """

    def __init__(self, scale: Tensor, outputs: Tensor) -> None:
        # not "> 0": NaN must come through, to be reported
        self.columns = (scale != 0).any(dim=0).nonzero().tolist()
        super().__init__(len(self.columns), (scale != 0).view(outputs.shape))
        self.scale, self.shape = scale, outputs.shape

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        position, c = self.columns[k]
        v = self.scale.new_zeros(self.scale[rows].shape)
        v[:, position, c] = self.scale[rows, position, c]
        return v.view(len(v), *self.shape[1:]).to(self.dtype)


class Scores(Cotangents):
    r"""The exact expectation over the labels of a softmax: C - 1 vectors per position instead of C.

    The scores :math:`e_y - p` have the covariance :math:`\mathrm{diag}(p) - p p^\top`, of rank C - 1. Any factors of it
    give the same sum of squares; those of its Cholesky decomposition are known in closed form. With the tail sums
    :math:`s_k = \sum_{j \ge k} p_j`,

    .. math:: v_k = \sqrt{p_k\, s_{k+1} / s_k}\; \Big(e_k - \sum_{j > k} \frac{p_j}{s_{k+1}} e_j\Big) .

    They are sums and quotients of positive numbers: nothing is lost where the model is certain and 1 - p cancels.
    Positions are independent given the input and their scores have mean zero, so their squares add up.

    Args:
        p: ``(N, P, C)`` probabilities.
        weight: ``(N, P, 1)``, of the position in the sample's loss.
        outputs: For shape and dtype.
    """

    def __init__(self, p: Tensor, weight: Tensor, outputs: Tensor) -> None:
        tails = p.flip(2).cumsum(2).flip(2)
        after = torch.cat([tails[..., 1:], torch.zeros_like(tails[..., :1])], dim=2)
        # where nothing is left the vector is 0; not "> 0": NaN must come through, to be reported
        scale = torch.where(tails == 0, 0, (p * after / tails).sqrt()) * weight
        self.columns = (scale != 0).any(dim=0).nonzero().tolist() or [[0, 0]]
        super().__init__(len(self.columns), (p * weight != 0).view(outputs.shape))
        self.p, self.scale, self.shape = p, scale, outputs.shape
        self.after = torch.where(after == 0, 1, after)

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        position, c = self.columns[k]
        factor = self.scale[rows, position, c]
        v = self.scale.new_zeros(len(factor), *self.scale.shape[1:])
        v[:, position, c] = factor
        shares = (-factor / self.after[rows, position, c]).unsqueeze(1)
        torch.mul(self.p[rows, position, c + 1 :], shares, out=v[:, position, c + 1 :])
        return v.view(len(v), *self.shape[1:]).to(self.dtype)


class Given(Cotangents):
    """Vectors that are there as tensors, or cheap to make: gradients at K given labels.

    Args:
        vectors: ``(N, ..., C)`` each.
        support: See the base.
    """

    def __init__(self, vectors: Sequence[Tensor], support: Tensor) -> None:
        super().__init__(len(vectors), support)
        self.vectors = vectors

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        return self.vectors[k][rows].to(self.dtype)


class AtLabels(Cotangents):
    """Classification at K labels per sample (and position): ``scale_k (p - e_{y_k})``.

    Args:
        p: ``(N, P, C)``.
        labels: ``(N, P, K)``.
        scale: ``(N, P, K)``.
        outputs: For shape and dtype.
    """

    def __init__(self, p: Tensor, labels: Tensor, scale: Tensor, outputs: Tensor) -> None:
        super().__init__(labels.shape[2], (p > 0).view(outputs.shape))
        self.p, self.labels, self.scale, self.shape = p, labels, scale, outputs.shape

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        p, labels = self.p[rows], self.labels[rows, :, k : k + 1]
        v = p.scatter_add(2, labels, p.new_full(labels.shape, -1.0)).mul_(self.scale[rows, :, k : k + 1])
        return v.view(len(v), *self.shape[1:]).to(self.dtype)


def cotangents(outputs: Tensor, targets: Tensor | None, how: Labels, generator: torch.Generator) -> Cotangents:
    """The vectors of a batch.

    Args:
        outputs: ``(N, C)`` or ``(N, ..., C)`` without graph: logits, or means for gaussian.
        targets: See :func:`lightning_cl.functional.diagonal_fisher`; only empirical needs them, and the others where
            positions are to be ignored.
        how: The mode.
        generator: CPU generator of mc and top_k, advanced by the same count for every sample, so that the draws do not
            depend on batching.

    Raises:
        ValueError: if targets do not fit.
    """
    made = _cotangents(outputs if outputs.dtype == torch.float64 else outputs.float(), targets, how, generator)
    made.dtype = outputs.dtype
    return made


def _cotangents(outputs: Tensor, targets: Tensor | None, how: Labels, generator: torch.Generator) -> Cotangents:
    if how.likelihood == "classification":
        return _classification(outputs, targets, how, generator)
    needs = how.mode in ("empirical", "probability_weighted", "batch_mean")
    if needs and (targets is None or targets.shape != outputs.shape):
        given = None if targets is None else tuple(targets.shape)
        raise ValueError(
            f"targets of shape {given}; expected {tuple(outputs.shape)}, the shape of the outputs. HINT: give a "
            "logits_fn that returns (outputs, targets)"
        )
    y = targets.to(outputs) if targets is not None and needs else None
    return (_multi_label if how.likelihood == "multi_label" else _gaussian)(outputs, y, how, generator)


def _classification(logits: Tensor, targets: Tensor | None, how: Labels, generator: torch.Generator) -> Cotangents:
    c = logits.shape[-1]
    p = logits.softmax(dim=-1).view(len(logits), -1, c)
    weight = p.new_ones(p.shape[:2])
    positions = logits.dim() > 2
    y: Tensor | None = None
    if how.mode in ("empirical", "probability_weighted", "batch_mean") or (positions and targets is not None):
        y = checked(targets, logits.shape[:-1], c).to(p.device).view(p.shape[:2])
        kept = y != IGNORED
        if not positions and not kept.all():
            raise ValueError(_outside(y, c))
        # the loss of a sample is the mean over its positions that are not ignored
        weight = kept / kept.sum(1, keepdim=True).clamp_min(1) if positions else weight
        y = y.clamp_min(0)
    elif positions:
        weight = weight / p.shape[1]
    if positions and how.mode in ("probability_weighted", "top_k"):
        raise ValueError(
            f"labels={how.mode!r} with logits of shape {tuple(logits.shape)}; expected (N, C). HINT: use mc or "
            "empirical for outputs with positions"
        )
    weight = weight.to(p.dtype).unsqueeze(2)
    if how.mode == "exact":
        return Scores(p, weight, logits)
    if how.mode == "top_k" and how.top_k < c:
        labels, scale = _top_k(p[:, 0], how, generator)
        return AtLabels(p, labels.unsqueeze(1), scale.unsqueeze(1), logits)
    if how.mode == "top_k":
        return Scores(p, weight, logits)
    if how.mode == "mc":
        drawn = draw(p.flatten(0, 1), how.n_draws, generator).view(*p.shape[:2], how.n_draws)
        return AtLabels(p, drawn, (weight / how.n_draws**0.5).expand(drawn.shape), logits)
    labels = (p.argmax(dim=2) if y is None or how.mode == "predicted" else y).unsqueeze(2)
    scale = weight * p.gather(2, labels).sqrt() if how.mode == "probability_weighted" else weight
    return AtLabels(p, labels, scale.expand(labels.shape), logits)


def _top_k(p: Tensor, how: Labels, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """All of the k likeliest classes by their probability, and draws from the rest that stand for its whole mass."""
    top, classes = p.topk(how.top_k, dim=1)
    rest = p.scatter(1, classes, 0.0)
    mass = rest.sum(1, keepdim=True)
    drawn = draw(rest, how.n_draws, generator)
    scale = torch.cat([top.sqrt(), (mass / how.n_draws).sqrt().expand(-1, how.n_draws)], dim=1)
    return torch.cat([classes, drawn], dim=1), scale


def _multi_label(logits: Tensor, y: Tensor | None, how: Labels, generator: torch.Generator) -> Cotangents:
    s = logits.sigmoid()
    if how.mode == "exact":
        scale = (s * (1 - s)).sqrt()
        return Columns(scale.view(len(s), -1, s.shape[-1]), logits)
    everywhere = torch.ones_like(s, dtype=torch.bool)
    if how.mode == "mc":
        uniform = torch.rand(len(s), how.n_draws, *s.shape[1:], generator=generator, dtype=torch.float64).to(s.device)
        vectors = [(s - (uniform[:, k] < s).to(s)) / how.n_draws**0.5 for k in range(how.n_draws)]
        return Given(vectors, everywhere)
    y = (s > 0.5).to(s) if y is None else y
    v = s - y
    if how.mode == "probability_weighted":
        likelihood = torch.where(y > 0.5, s, 1 - s).flatten(1).prod(1)
        v = v * likelihood.sqrt().view(-1, *[1] * (v.dim() - 1))
    return Given([v], everywhere)


def _gaussian(means: Tensor, y: Tensor | None, how: Labels, generator: torch.Generator) -> Cotangents:
    everywhere = torch.ones_like(means, dtype=torch.bool)
    if how.mode == "exact":
        return Columns(torch.ones_like(means).view(len(means), -1, means.shape[-1]), means)
    if how.mode == "mc":
        # by inversion: randn takes its numbers in blocks, so that its values depend on the size of the batch
        uniform = torch.rand(len(means), how.n_draws, *means.shape[1:], generator=generator, dtype=torch.float64)
        noise = (2 * uniform.clamp_min(1e-16) - 1).erfinv().mul_((2 / how.n_draws) ** 0.5).to(means)
        return Given([noise[:, k] for k in range(how.n_draws)], everywhere)
    assert y is not None
    return Given([means - y], everywhere)


def draw(probabilities: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Labels ``(N, n_draws)`` drawn from the rows, by inversion: sample n uses its own n_draws random numbers."""
    uniform = torch.rand(len(probabilities), n_draws, generator=generator, dtype=torch.float64)
    cumulative = probabilities.double().cpu().cumsum(dim=1)
    # the first class whose cumulative probability exceeds the number has p > 0, even at 0 or under rounding
    labels = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    # only NaN, or no mass at all, has no such class
    labels = labels.clamp_(max=probabilities.shape[1] - 1)
    return labels.to(probabilities.device)


def checked(targets: Tensor | None, shape: Sequence[int], c: int) -> Tensor:
    """Targets as int64, after a look at their shape, dtype and range."""
    if targets is None:
        raise ValueError("targets=None; expected one label per sample. HINT: use labels='exact', which needs none")
    if targets.shape != tuple(shape) or targets.dtype not in _INTEGERS:
        wanted = f"{shape[0]} integer labels" if len(shape) == 1 else f"integer labels of shape {tuple(shape)}"
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} and {targets.dtype}; expected {wanted}. HINT: give a "
            "logits_fn that returns (logits, targets)"
        )
    targets = targets.long()
    if (((targets < 0) & (targets != IGNORED)) | (targets >= c)).any():
        raise ValueError(_outside(targets, c))
    return targets


def _outside(targets: Tensor, c: int) -> str:
    return (
        f"targets from {int(targets.min())} to {int(targets.max())}; expected labels in [0, {c}), as there are {c} "
        "logits. HINT: give a logits_fn that maps labels to the columns of the logits"
    )
