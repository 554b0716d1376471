"""The Fisher information that a callback takes of a task."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lightning_cl.callbacks._importance import compute_importance
from lightning_cl.callbacks._input_errors import input_errors
from lightning_cl.errors import InputError
from lightning_cl.functional._cotangents import LABELS, Labels
from lightning_cl.functional.fisher import check_labels


class TaskFisher:
    """The diagonal Fisher of a task, tried on a first batch when training starts.

    Args:
        labels, likelihood, n_draws, top_k, n_samples, max_bytes, logits_fn, loss_fn, seed: See
            :class:`~lightning_cl.EWC`.

    Raises:
        InputError: For values out of range.
    """

    def __init__(
        self,
        *,
        labels: str,
        likelihood: str,
        n_draws: int,
        top_k: int,
        n_samples: int | None,
        max_bytes: int,
        logits_fn: Callable[..., Any] | None,
        loss_fn: Callable[..., Any] | None,
        seed: int,
    ) -> None:
        if labels not in LABELS:
            raise InputError(f"labels={labels!r}", f"one of {', '.join(LABELS)}", "labels='exact' is the default")
        if n_draws < 1 or (n_samples is not None and n_samples < 1):
            raise InputError(f"n_draws={n_draws!r}, n_samples={n_samples!r}", "integers >= 1", "leave them out")
        if max_bytes < 1:
            raise InputError(f"max_bytes={max_bytes!r}", "an integer >= 1", "leave it out for 16 MiB")
        with input_errors():
            check_labels(Labels(labels, likelihood, n_draws, top_k), None, None)
        self.settings: dict[str, Any] = {
            "labels": labels,
            "likelihood": likelihood,
            "top_k": top_k,
            "max_bytes": max_bytes,
            "n_draws": n_draws,
            "n_samples": n_samples,
            "logits_fn": logits_fn,
            "loss_fn": loss_fn,
            "seed": seed,
        }
        self._rehearsed = False

    def rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        """Fail now if it cannot work."""
        compute_importance(trainer, module, loader, first_batch_only=True, **self.settings)
        self._rehearsed = True

    def __call__(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        """The Fisher over ``loader``."""
        new = compute_importance(trainer, module, loader, quiet=self._rehearsed, **self.settings)
        self._rehearsed = False
        return new
