"""Elastic weight consolidation."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._fisher import TaskFisher
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import merge_average, merge_offline, merge_online


class EWC(QuadraticPenalty):
    r"""Keeps parameters that mattered for earlier tasks near their values (Kirkpatrick et al. 2017, arXiv:1612.00796).

    The penalty is :math:`\frac{\lambda}{2}\sum_i F_i\,(\theta_i-\theta^*_i)^2`, added to the batch-mean loss; its
    gradient :math:`\lambda F_i(\theta_i-\theta^*_i)` goes into ``.grad`` right before the optimizer's step, so
    accumulation, AMP and DDP need no correction, or with ``apply="proximal"`` its exact proximal step follows the
    optimizer's and is stable for every lambda. :math:`F` is the mean over samples of squared per-sample gradients (see
    :func:`lightning_cl.functional.diagonal_fisher`), so lambda does not depend on the batch size. How other codes'
    lambda maps to this one: :func:`lightning_cl.functional.conventions.our_settings`.

    Several tasks: ``variant="offline"`` is the exact sum of one penalty per task; ``"online"`` (Schwarz et al. 2018,
    arXiv:1805.06370) keeps :math:`F \leftarrow \gamma F + F_{new}` around the latest weights, ``"average"``
    :math:`F \leftarrow \gamma F + (1-\gamma) F_{new}`. Each needs two tensors per trainable parameter, for any number
    of tasks. Parameters that do not require a gradient are skipped; rows that a head gains later are padded with zeros.

    EWC does not solve class-incremental learning (about 20 % on Split MNIST): use :class:`~lightning_cl.Replay` there.

    Args:
        lambda_: Strength of the penalty, >= 0, or ``"auto"``. Useful values span 1 .. 1e9 between problems.
        variant: ``"offline"``, ``"online"`` or ``"average"``.
        gamma: Weight of the old importance in the online variant, in (0, 1], and in the average, in (0, 1) or
            ``"tasks"``: (t - 1) / t at the t-th task, the mean of all.
        labels: Labels of the Fisher: ``"exact"`` (expectation under the model), ``"mc"`` (drawn from the model),
            ``"empirical"`` (true label), ``"predicted"`` (argmax), ``"top_k"`` (exact over the likeliest classes,
            draws for the rest: large label sets), and ``"probability_weighted"`` and ``"batch_mean"``, which reproduce
            other codes.
        likelihood: What the outputs are: ``"classification"`` (softmax), ``"multi_label"`` (independent sigmoids), or
            ``"gaussian"`` (regression, loss ``||f - y||^2 / 2``).
        n_draws: Draws per sample of ``"mc"`` and ``"top_k"``.
        top_k: Classes of ``"top_k"`` that are taken exactly.
        n_samples: Use a seeded subset of this many samples; all by default.
        max_bytes: Of per-sample gradients and patches that are held at once.
        logits_fn: ``(module, batch) -> (logits, targets)``, for modules whose structure is not found by itself.
        loss_fn: ``(module, batch) -> loss`` of one sample, for modules without logits; gives the empirical Fisher.
        seed: Seed of the draws and of the subset.
        name, apply, lambda_schedule, unstable, include, exclude, normalize, importance_dtype, importance_path,
            consolidate, select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For values outside these ranges, and what every penalty refuses.
    """

    supports_sharding = True

    def __init__(
        self,
        lambda_: float | Literal["auto"],
        *,
        variant: Literal["offline", "online", "average"] = "offline",
        gamma: float | Literal["tasks"] | None = None,
        labels: str = "exact",
        likelihood: str = "classification",
        n_draws: int = 1,
        top_k: int = 10,
        n_samples: int | None = None,
        max_bytes: int = 2**24,
        logits_fn: Callable[..., Any] | None = None,
        loss_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "ewc",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        if variant not in ("offline", "online", "average"):
            raise InputError(f"variant={variant!r}", "'offline', 'online' or 'average'", "leave it out for 'offline'")
        if gamma is None:
            gamma = "tasks" if variant == "average" else 1.0
        if gamma == "tasks":
            if variant != "average":
                raise InputError(f"gamma='tasks' with variant={variant!r}", "variant='average'", "gamma=1 adds them up")
        elif not isinstance(gamma, int | float) or not 0 < gamma <= 1:
            raise InputError(f"gamma={gamma!r}", "a number in (0, 1]", "gamma=1 keeps all tasks alike")
        elif gamma == 1 and variant == "average":
            raise InputError("gamma=1 with variant='average'", "a number in (0, 1)", "gamma='tasks' is the mean of all")
        self.variant, self.gamma, self.labels = variant, gamma, labels
        self._fisher = TaskFisher(
            labels=labels,
            likelihood=likelihood,
            n_draws=n_draws,
            top_k=top_k,
            n_samples=n_samples,
            max_bytes=max_bytes,
            logits_fn=logits_fn,
            loss_fn=loss_fn,
            seed=seed,
        )

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        self._fisher.rehearse(trainer, module, loader)

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        return self._fisher(trainer, module, loader)

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if self.variant == "offline":
            return merge_offline(importance, anchor, new, parameters)
        gamma = self.n_tasks / (self.n_tasks + 1) if isinstance(self.gamma, str) else self.gamma
        merge = merge_average if self.variant == "average" else merge_online
        return merge(importance, anchor, new, parameters, gamma)
