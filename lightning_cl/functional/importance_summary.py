"""What an importance looks like, parameter by parameter, in a few numbers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_cl.functional.seeding import generator

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# sorting more changes no digit that anybody reads
_MOST = 100_000


def summarize_importance(importance: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """One row of plain numbers per parameter, in the order given.

    Args:
        importance: Name to a tensor of any shape and floating dtype.

    Returns:
        Rows ``{name, shape, size, mean, max, sum, share, zeros, log10_quantiles}``: ``share`` is the row's part of the
        sum over all parameters (None if that is 0 or not finite), ``zeros`` how many elements are exactly 0,
        ``log10_quantiles`` the 5, 25, 50, 75 and 95 % quantiles of the positive elements' log10 (None without any;
        beyond 100,000 elements those of a seeded sample).

    Example:
        >>> rows = summarize_importance({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([0.0, 1.0])})
        >>> [(row["name"], row["shape"], row["mean"], row["share"], row["zeros"]) for row in rows]
        [('w', [1, 2], 1.5, 0.75, 0), ('b', [2], 0.5, 0.25, 1)]
    """
    sums = {name: float(value.detach().sum(dtype=torch.float64)) for name, value in importance.items()}
    total = sum(sums.values())
    known = 0 < total < float("inf")
    return [
        {
            "name": name,
            "shape": list(value.shape),
            "size": value.numel(),
            "mean": sums[name] / max(value.numel(), 1),
            "max": float(value.detach().max()) if value.numel() else 0.0,
            "sum": sums[name],
            "share": sums[name] / total if known else None,
            "zeros": int((value.detach() == 0).sum()),
            "log10_quantiles": _log_quantiles(name, value.detach()),
        }
        for name, value in importance.items()
    ]


def _log_quantiles(name: str, value: Tensor) -> list[float] | None:
    flat = value.flatten()
    if flat.numel() > _MOST:
        # drawn and not strided: a stride may hit one column of a matrix only
        chosen = torch.randint(flat.numel(), (_MOST,), generator=generator(0, "summary", name))
        flat = flat[chosen.to(flat.device)]
    positive = flat[(flat > 0) & flat.isfinite()].double().sort().values.log10()
    if not positive.numel():
        return None
    return [float(positive[round(q * (positive.numel() - 1))]) for q in QUANTILES]
