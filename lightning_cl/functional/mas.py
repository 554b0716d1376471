"""The importance of memory aware synapses."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._cotangents import Cotangents, Given
from lightning_cl.functional._importance_engine import OutputsFn
from lightning_cl.functional._importance_pass import default_outputs, mean_over_samples


def mas_importance(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    outputs_fn: OutputsFn | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    n_samples: int | None = None,
    max_bytes: int = 2**24,
    fallback: str = "auto",
    distributed: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""How much each parameter moves the outputs (Aljundi et al. 2018, arXiv:1711.09601, eq. 2 and 3).

    .. math:: \Omega = \frac{1}{N} \sum_n \left| \nabla_\theta \lVert f_\theta(x_n) \rVert_2^2 \right|

    Per sample, never the absolute value of a batch's gradient, by the same engine and with the same guarantees as
    :func:`lightning_cl.functional.diagonal_fisher`; labels are not needed.

    Args:
        outputs_fn: ``(module, batch) -> (outputs (N, ..., C), anything)``; default ``module(batch[0])``. Outputs of
            inactive classes (-inf, or below -1e29) are left out.
        module, loader, parameters, n_samples, max_bytes, fallback, distributed, seed: See
            :func:`lightning_cl.functional.diagonal_fisher`.

    Returns:
        Name to a non-negative tensor of the parameter's shape, fp32 (fp64 for fp64 parameters).

    Raises:
        ValueError: as :func:`lightning_cl.functional.diagonal_fisher`.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, -3.0)
        >>> mas_importance(layer, [(torch.tensor([[1.0]]),)])["weight"]  # |d (w x)^2 / d w| = |2 w x^2|
        tensor([[6.]])
    """

    def make(outputs: Tensor, targets: Tensor | None) -> Cotangents:
        active = outputs > -1e29 if outputs.dtype != torch.float16 else outputs > -65504
        # not "outputs > ...": NaN must come through, to be reported
        kept = active | outputs.isnan()
        made = Given([torch.where(kept, 2 * outputs, torch.zeros_like(outputs))], kept)
        made.dtype = outputs.dtype
        return made

    return mean_over_samples(
        module,
        loader,
        what="MAS importance",
        outputs_fn=outputs_fn or default_outputs,
        make_cotangents=make,
        parameters=parameters,
        power=1,
        n_samples=n_samples,
        max_bytes=max_bytes,
        fallback=fallback,
        distributed=distributed,
        seed=seed,
    )
