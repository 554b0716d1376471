"""Which label each sample's gradient is taken for, as vectors to be pulled back through the network."""

import torch
from torch import Tensor

MODES = ("exact", "mc", "empirical", "predicted")


class Cotangents:
    """The K vectors ``v_k`` (N, C) with ``F_n = sum_k (J_n^T v_kn)^2``, J the Jacobian of the logits.

    The gradient of the cross-entropy for label c is ``p - e_c``. Exact: one vector per class,
    ``sqrt(p_c) (e_c - p)``, so that the sum over classes is the expectation under the model; classes with p = 0 for
    every sample (inactive ones) are left out. mc(k): k drawn labels, each divided by ``sqrt(k)``. Empirical and
    predicted: one label. A vector is built when asked for: C of them at once would be N * C * C numbers.

    Args:
        logits: ``(N, C)``, no graph.
        targets: ``(N,)``, only needed for empirical.
        mode: One of ``MODES``.
        n_draws: k of mc.
        generator: CPU generator of mc, advanced by exactly N * k numbers, so that draws do not depend on batching.
    """

    def __init__(
        self, logits: Tensor, targets: Tensor | None, mode: str, n_draws: int, generator: torch.Generator
    ) -> None:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        self.probabilities = wide.softmax(dim=1)
        self.dtype = logits.dtype
        self.classes: list[int] | None = None
        self.labels: Tensor | None = None
        if mode == "exact":
            # not "> 0": NaN must come through, to be reported
            self.classes = (self.probabilities != 0).any(dim=0).nonzero().flatten().tolist()
        elif mode == "mc":
            self.labels = draw(self.probabilities, n_draws, generator)
        elif mode == "predicted":
            self.labels = logits.argmax(dim=1, keepdim=True)
        else:
            self.labels = _checked(targets, logits).unsqueeze(1)

    def __len__(self) -> int:
        """The number of vectors, K."""
        if self.classes is not None:
            return len(self.classes)
        assert self.labels is not None
        return self.labels.shape[1]

    def vector(self, k: int, rows: slice = slice(None)) -> Tensor:
        """``v_k`` of these rows, in the logits' dtype."""
        p = self.probabilities[rows]
        if self.classes is not None:
            c = self.classes[k]
            root = p[:, c].sqrt()
            v = p * -root.unsqueeze(1)
            v[:, c] += root
            return v.to(self.dtype)
        assert self.labels is not None
        v = p.scatter_add(1, self.labels[rows, k : k + 1], p.new_full((len(p), 1), -1.0))
        return (v / len(self) ** 0.5).to(self.dtype)


def draw(probabilities: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Labels ``(N, n_draws)`` drawn from the rows, by inversion: sample n uses its own n_draws random numbers."""
    uniform = torch.rand(len(probabilities), n_draws, generator=generator, dtype=torch.float64)
    cumulative = probabilities.double().cpu().cumsum(dim=1)
    # the first class whose cumulative probability exceeds the number has p > 0, even at 0 or under rounding
    labels = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    # only NaN has no such class
    labels = labels.clamp_(max=probabilities.shape[1] - 1)
    return labels.to(probabilities.device)


def _checked(targets: Tensor | None, logits: Tensor) -> Tensor:
    n, c = logits.shape
    if targets is None:
        raise ValueError("targets=None; expected one label per sample. HINT: use labels='exact', which needs none")
    targets = targets.to(logits.device)
    if targets.shape != (n,) or targets.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} and {targets.dtype}; expected {n} integer labels. HINT: give a "
            "logits_fn that returns (logits, targets)"
        )
    targets = targets.long()
    if ((targets < 0) | (targets >= c)).any():
        raise ValueError(
            f"targets from {int(targets.min())} to {int(targets.max())}; expected labels in [0, {c}), as there are {c} "
            "logits. HINT: give a logits_fn that maps labels to the columns of the logits"
        )
    return targets
