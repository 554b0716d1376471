"""Kronecker-factored elastic weight consolidation."""

import logging
from collections.abc import Callable
from typing import Any, Literal, Unpack

import torch
from torch import Tensor

from lightning_cl.callbacks._classifier import has_one_class
from lightning_cl.callbacks._foreign import logits_of, outputs_and_targets, why_no_logits
from lightning_cl.callbacks._importance import TaskBatches, importance_pass
from lightning_cl.callbacks._input_errors import input_errors
from lightning_cl.callbacks._kept_penalty import ONE_CLASS
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.callbacks._stability import StabilityGuard
from lightning_cl.errors import InputError
from lightning_cl.functional._cotangents import LABELS, Labels
from lightning_cl.functional.fisher import check_labels
from lightning_cl.functional.kfac import KroneckerFactors, kronecker_fisher
from lightning_cl.functional.kronecker_penalty import KroneckerPenalty
from lightning_cl.functional.penalty import merge_offline, merge_online

log = logging.getLogger(__name__)
MODES = tuple(mode for mode in LABELS if mode != "batch_mean")


class KroneckerEWC(QuadraticPenalty):
    r"""EWC that knows which weights of a layer depend on each other (Ritter et al. 2018, arXiv:1805.07810).

    The Fisher information of a layer's matrix W, its bias in it, is a Kronecker product in place of a diagonal
    (:func:`lightning_cl.functional.kronecker_fisher`), and the penalty of task t is

    .. math:: \frac{\lambda}{2}\,\mathrm{vec}(W-W_t)^T (A_t \otimes G_t)\,\mathrm{vec}(W-W_t)

    added to the batch-mean loss; its gradient :math:`\lambda\,G_t (W-W_t) A_t` goes into ``.grad`` right before the
    optimizer's step, so accumulation, AMP, DDP and manual optimization need no correction. It is on the scale of
    :class:`~lightning_cl.EWC`'s: lambdas are of the same size.

    Linear layers (token axes too) and convolutions with one group have factors. Parameters in no such layer (norms,
    embeddings, weights that are tied or used more than once, grouped convolutions, attention's packed projections) have
    the diagonal penalty of EWC, or with ``rest="none"`` nothing; the log says which. Frozen parameters are skipped.
    Rows that a head gains later are free until their first task is over.

    State and cost: with ``accumulate="tasks"``, for each layer and task ``in^2 + out^2`` numbers (in: inputs of a
    linear layer, channels times kernel of a convolution), beside two matrices ``(out, in)``, and at each step two
    products, ``2 in out (in + out)`` operations: both grow with the number of tasks. For 784-400-400-10 that is 4.9 MiB
    a task. With ``"sum"`` neither grows: the factors are merged into one pair, the mean of A and the sum of G, around
    the newest weights (Ritter's online variant; tasks are then confused with each other).
    The rest has two tensors per parameter.

    Args:
        lambda_: Strength of the penalty, >= 0.
        accumulate: ``"tasks"``: one term for each task; ``"sum"``: one for all.
        rest: ``"diagonal"`` or ``"none"``, for parameters in no layer with factors.
        max_size: Layers with more inputs or outputs than this are left to ``rest``; None takes all.
        labels: Labels of the Fisher: ``"exact"``, ``"mc"``, ``"empirical"``, ``"predicted"``, ... as in EWC.
        likelihood, n_draws, top_k, n_samples, max_bytes, logits_fn, seed: As in EWC.
        name, lambda_schedule, unstable, include, exclude, consolidate, select, state_path: See
            :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`. Its ``apply="proximal"``, ``normalize``,
            ``importance_dtype``, ``importance_path`` and ``lambda_="auto"`` are refused.

    Raises:
        InputError: For values outside these ranges, modules without logits, and what every penalty refuses.
    """

    def __init__(
        self,
        lambda_: float,
        *,
        accumulate: Literal["tasks", "sum"] = "tasks",
        rest: Literal["diagonal", "none"] = "diagonal",
        max_size: int | None = 8192,
        labels: str = "exact",
        likelihood: str = "classification",
        n_draws: int = 1,
        top_k: int = 10,
        n_samples: int | None = None,
        max_bytes: int = 2**24,
        logits_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "kfac_ewc",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        _refuse_unfit(lambda_, penalty)
        super().__init__(lambda_, name=name, **penalty)
        if accumulate not in ("tasks", "sum"):
            raise InputError(f"accumulate={accumulate!r}", "'tasks' or 'sum'", "leave it out for 'tasks'")
        if rest not in ("diagonal", "none"):
            raise InputError(f"rest={rest!r}", "'diagonal' or 'none'", "leave it out for 'diagonal'")
        if max_size is not None and max_size < 1:
            raise InputError(f"max_size={max_size!r}", "an integer >= 1 or None", "None takes layers of every size")
        if labels not in MODES:
            raise InputError(f"labels={labels!r}", f"one of {', '.join(MODES)}", "labels='exact' is the default")
        if n_draws < 1 or (n_samples is not None and n_samples < 1):
            raise InputError(f"n_draws={n_draws!r}, n_samples={n_samples!r}", "integers >= 1", "leave them out")
        self.accumulate, self.rest, self.max_size = accumulate, rest, max_size
        if max_bytes < 1:
            raise InputError(f"max_bytes={max_bytes!r}", "an integer >= 1", "leave it out for 16 MiB")
        with input_errors():
            check_labels(Labels(labels, likelihood, n_draws, top_k), None, None)
        self.labels, self.logits_fn, self.likelihood = labels, logits_fn, likelihood
        self._options: dict[str, Any] = {
            "likelihood": likelihood,
            "n_draws": n_draws,
            "top_k": top_k,
            "max_bytes": max_bytes,
            "seed": seed,
        }
        self.n_samples, self.seed = n_samples, seed
        #: Name of a layer's weight to its penalty.
        self.blocks: dict[str, KroneckerPenalty] = {}
        self._named: dict[str, Tensor] | None = None
        self._guard = StabilityGuard(self._guard.unstable, has_proximal=False)
        self._block_guard = StabilityGuard(self._guard.unstable, has_proximal=False)

    @property
    def nbytes(self) -> int:
        """Bytes of factors, matrices, importances and anchors."""
        return super().nbytes + sum(block.nbytes for block in self.blocks.values())

    @property
    def _held(self) -> list[str]:
        return [*super()._held, *(name for block in self.blocks.values() for name in block.layer.names)]

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See whether consolidation will work, and whether SGD can be stable."""
        super().on_train_start(trainer, pl_module)
        self._fit_blocks(pl_module)
        curvatures = {}
        if self.strength > 0 and any(isinstance(optimizer, torch.optim.SGD) for optimizer in trainer.optimizers):
            curvatures = {name: torch.tensor(block.largest_curvature()) for name, block in self.blocks.items()}
        self._block_guard.start(curvatures)
        self._block_guard.check(trainer.optimizers, self.strength)

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        self._fisher(trainer, module, loader, first_batch_only=True)

    def _after_penalty(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        strength = self.strength
        if strength == 0 or not self.blocks:
            return
        self._block_guard.check([optimizer], strength)
        parameters = self._fit_blocks(module)
        # such an optimizer turns the sign of what is in .grad
        turned = {id(p) for group in optimizer.param_groups if group.get("maximize") for p in group["params"]}
        for block in self.blocks.values():
            mine = [name for name in block.layer.names if name in named]
            if not mine:
                continue
            gradient = block.gradient(block.layer.matrix(parameters))
            for name in mine:
                parameter = named[name]
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                sign = -1 if id(parameter) in turned else 1
                parameter.grad.add_(block.layer.part(name, gradient, parameter), alpha=sign * strength)

    def _fit_blocks(self, module: Any) -> dict[str, Tensor]:
        """All parameters by name, and every block in their size and on their device."""
        if self._named is None:
            self._named = dict(module.named_parameters())
            self.blocks = {
                name: block.grown(self._named) if self._named.keys() >= set(block.layer.names) else block
                for name, block in self.blocks.items()
            }
        return self._named

    def _forget_plans(self) -> None:
        super()._forget_plans()
        self._named = None

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        factors, diagonal = self._fisher(trainer, module, loader)
        if not factors and not diagonal:
            if not has_one_class(module):
                hint = "the gradients vanish: check data, labels and weights (a saturated output has none in fp32)"
                raise InputError(
                    f"Fisher information of {self.state_key} that is 0 everywhere", "some that is not", hint
                )
            log.warning(ONE_CLASS, self.state_key, self.n_tasks)
        self._forget_plans()
        named = self._fit_blocks(module)
        for name, new in factors.items():
            old = self.blocks.get(name)
            if old is None:
                self.blocks[name] = KroneckerPenalty.of(new, named)
            else:
                self.blocks[name] = (old.with_task if self.accumulate == "tasks" else old.with_summed)(new, named)
        merge = merge_offline if self.accumulate == "tasks" else merge_online
        device = next(iter(named.values())).device
        importance, anchor = (
            {name: value.to(device) for name, value in part.items()} for part in (self.importance, self.anchor)
        )
        self._keep(*merge(importance, anchor, diagonal, {name: named[name].detach() for name in diagonal}))
        self._started = False

    def _fisher(
        self, trainer: Any, module: Any, loader: Any, first_batch_only: bool = False
    ) -> tuple[dict[str, KroneckerFactors], dict[str, Tensor]]:
        selected = self._selected(module)
        with importance_pass(trainer, module, loader, seed=self.seed, first_batch_only=first_batch_only) as batches:
            return kronecker_fisher(
                module,
                batches,
                # one backward pass in place of one per class
                labels="mc" if first_batch_only and self.labels == "exact" else self.labels,
                logits_fn=self.logits_fn or _way_to_logits(module, batches, self.likelihood),
                parameters=selected,
                layers=[name for name, value in selected.items() if self._is_small(value)],
                rest=self.rest,
                n_samples=None if first_batch_only else self.n_samples,
                **self._options,
            )

    def _is_small(self, weight: Tensor) -> bool:
        if self.max_size is None or weight.dim() < 2:
            return True
        return max(len(weight), weight[0].numel()) <= self.max_size

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "blocks": {name: block.state() for name, block in self.blocks.items()}}

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self.blocks = {name: KroneckerPenalty.from_state(block) for name, block in state["blocks"].items()}


def _way_to_logits(module: Any, batches: TaskBatches, likelihood: str) -> Callable[..., Any]:
    if batches.whole:
        raise batches.cannot_split()
    if hasattr(module, "importance_logits"):
        return lambda module, batch: module.importance_logits(batch)
    if likelihood != "classification":
        return outputs_and_targets
    reason = why_no_logits(module, batches.first)
    if reason:
        raise InputError(
            f"{type(module).__name__}, whose logits are not found: {reason}",
            "a classifier with logits",
            "give logits_fn=lambda module, batch: (logits, labels); EWC needs none",
        )
    return logits_of


def _refuse_unfit(lambda_: Any, penalty: PenaltyOptions) -> None:
    if lambda_ == "auto":
        raise InputError("lambda_='auto' with KroneckerEWC", "a number >= 0", "begin with one that suits EWC")
    if penalty.get("apply") == "proximal":
        raise InputError(
            "apply='proximal' with KroneckerEWC",
            "'gradient'",
            "the proximal step of a Kronecker product needs a solve at each step; EWC has it",
        )
    given: dict[str, Any] = dict(penalty)
    for key, default in (("normalize", None), ("importance_dtype", "float32"), ("importance_path", None)):
        if given.get(key, default) != default:
            raise InputError(f"{key}={given[key]!r} with KroneckerEWC", f"{default!r}", "leave it out; EWC has it")
