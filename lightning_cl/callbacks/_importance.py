"""How a callback asks any LightningModule for per-sample gradients."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from lightning_cl import _compat
from lightning_cl.functional.fisher import diagonal_fisher


def compute_importance(
    trainer: Any,
    module: Any,
    loader: Any,
    *,
    labels: str,
    n_draws: int,
    n_samples: int | None,
    seed: int,
    logits_fn: Callable[..., Any] | None,
    loss_fn: Callable[..., Any] | None,
) -> dict[str, Tensor]:
    """Diagonal Fisher of ``module`` over ``loader``, on the module's device, with logging muted.

    The way to the logits is, in this order: ``logits_fn``; ``loss_fn``; the module's own ``importance_logits(batch)``.
    """
    if logits_fn is None and loss_fn is None and hasattr(module, "importance_logits"):

        def logits_fn(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
            return module.importance_logits(batch)

    def batches() -> Iterator[Any]:
        for batch in loader:
            yield _compat.move_batch(trainer, module, batch)

    with _compat.muted_logging(module):
        return diagonal_fisher(
            module,
            batches(),
            labels=labels,
            n_draws=n_draws,
            n_samples=n_samples,
            seed=seed,
            logits_fn=logits_fn,
            loss_fn=loss_fn,
        )
