"""Elastic weight consolidation."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._importance import compute_importance
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.errors import InputError
from lightning_cl.functional._fisher_labels import MODES
from lightning_cl.functional.penalty import merge_offline, merge_online


class EWC(QuadraticPenalty):
    r"""Keeps parameters that mattered for earlier tasks near their values (Kirkpatrick et al. 2017, arXiv:1612.00796).

    The penalty is :math:`\frac{\lambda}{2}\sum_i F_i\,(\theta_i-\theta^*_i)^2`, added to the batch-mean loss; its
    gradient :math:`\lambda F_i(\theta_i-\theta^*_i)` goes into ``.grad`` right before the optimizer's step, so
    accumulation, AMP and DDP need no correction. :math:`F` is the mean over samples of squared per-sample gradients
    (see :func:`lightning_cl.functional.diagonal_fisher`), so lambda does not depend on the batch size.

    Several tasks: ``variant="offline"`` is the exact sum of one penalty per task; ``"online"`` (Schwarz et al. 2018,
    arXiv:1805.06370) keeps :math:`F \leftarrow \gamma F + F_{new}` around the latest weights. Both need two tensors per
    trainable parameter, for any number of tasks. Parameters that do not require a gradient are skipped; rows that a
    head gains later are padded with zeros.

    EWC does not solve class-incremental learning (about 20 % on Split MNIST): use :class:`~lightning_cl.Replay` there.

    Args:
        lambda_: Strength of the penalty, >= 0. Useful values span 1 .. 1e9 between problems.
        variant: ``"offline"`` or ``"online"``.
        gamma: Decay of the old importance in the online variant, in (0, 1].
        labels: Labels of the Fisher: ``"exact"`` (expectation under the model), ``"mc"`` (drawn from the model),
            ``"empirical"`` (true label), ``"predicted"`` (argmax).
        n_draws: Draws per sample of ``"mc"``.
        n_samples: Use a seeded subset of this many samples; all by default.
        logits_fn: ``(module, batch) -> (logits, targets)``, for modules whose structure is not found by itself.
        loss_fn: ``(module, batch) -> loss`` of one sample, for modules without logits; gives the empirical Fisher.
        seed: Seed of the draws and of the subset.
        name, apply, lambda_schedule, include, exclude, normalize, importance_dtype, importance_path, consolidate,
            select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For values outside these ranges, a sharded strategy, or a fused optimizer with a gradient scaler.
    """

    def __init__(
        self,
        lambda_: float,
        *,
        variant: Literal["offline", "online"] = "offline",
        gamma: float = 1.0,
        labels: str = "exact",
        n_draws: int = 1,
        n_samples: int | None = None,
        logits_fn: Callable[..., Any] | None = None,
        loss_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "ewc",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        if variant not in ("offline", "online"):
            raise InputError(f"variant={variant!r}", "'offline' or 'online'", "leave it out for 'offline'")
        if not 0 < gamma <= 1:
            raise InputError(f"gamma={gamma!r}", "a number in (0, 1]", "gamma=1 keeps all tasks alike")
        if labels not in MODES:
            raise InputError(f"labels={labels!r}", f"one of {', '.join(MODES)}", "labels='exact' is the default")
        if n_draws < 1 or (n_samples is not None and n_samples < 1):
            raise InputError(f"n_draws={n_draws!r}, n_samples={n_samples!r}", "integers >= 1", "leave them out")
        self.variant, self.gamma, self.labels = variant, gamma, labels
        self.n_draws, self.n_samples, self.seed = n_draws, n_samples, seed
        self.logits_fn, self.loss_fn = logits_fn, loss_fn
        self._rehearsed = False

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        self._fisher(trainer, module, loader, first_batch_only=True)
        self._rehearsed = True

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        new = self._fisher(trainer, module, loader, quiet=self._rehearsed)
        self._rehearsed = False
        return new

    def _fisher(self, trainer: Any, module: Any, loader: Any, **options: Any) -> dict[str, Tensor]:
        return compute_importance(
            trainer,
            module,
            loader,
            labels=self.labels,
            n_draws=self.n_draws,
            n_samples=self.n_samples,
            seed=self.seed,
            logits_fn=self.logits_fn,
            loss_fn=self.loss_fn,
            **options,
        )

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.variant == "offline":
            return merge_offline(importance, anchor, new, parameters)
        return merge_online(importance, anchor, new, parameters, self.gamma)
