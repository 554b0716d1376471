"""Elastic weight consolidation."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cl.callbacks._importance import compute_importance
from lightning_cl.callbacks._method import MethodCallback, plain_loader
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import add_quadratic_gradient_, merge_offline, merge_online, pad_to

log = logging.getLogger(__name__)
LABELS = ("exact", "mc", "empirical", "predicted")


class EWC(MethodCallback):
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
        name, consolidate, select, state_path: See :class:`~lightning_cl.callbacks._method.MethodCallback`.

    Raises:
        InputError: For values outside these ranges, a sharded strategy, or a fused optimizer with a gradient scaler.
    """

    def __init__(
        self,
        lambda_: float,
        *,
        variant: Literal["offline", "online"] = "offline",
        gamma: float = 1.0,
        labels: Literal["exact", "mc", "empirical", "predicted"] = "exact",
        n_draws: int = 1,
        n_samples: int | None = None,
        logits_fn: Callable[..., Any] | None = None,
        loss_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "ewc",
        consolidate: Literal["auto", "manual"] = "auto",
        select: Literal["last", "best"] = "last",
        state_path: str | Path | None = None,
    ) -> None:
        super().__init__(name=name, consolidate=consolidate, select=select, state_path=state_path)
        if not isinstance(lambda_, int | float) or not 0 <= lambda_ < float("inf"):
            raise InputError(f"lambda_={lambda_!r}", "a finite number >= 0", "try lambda_=1000")
        if variant not in ("offline", "online"):
            raise InputError(f"variant={variant!r}", "'offline' or 'online'", "leave it out for 'offline'")
        if not 0 < gamma <= 1:
            raise InputError(f"gamma={gamma!r}", "a number in (0, 1]", "gamma=1 keeps all tasks alike")
        if labels not in LABELS:
            raise InputError(f"labels={labels!r}", f"one of {', '.join(LABELS)}", "labels='exact' is the default")
        if n_draws < 1 or (n_samples is not None and n_samples < 1):
            raise InputError(f"n_draws={n_draws!r}, n_samples={n_samples!r}", "integers >= 1", "leave them out")
        self.lambda_, self.variant, self.gamma, self.labels = float(lambda_), variant, gamma, labels
        self.n_draws, self.n_samples, self.seed = n_draws, n_samples, seed
        self.logits_fn, self.loss_fn = logits_fn, loss_fn
        self.importance: dict[str, Tensor] = {}
        self.anchor: dict[str, Tensor] = {}
        self._plans: dict[int, tuple[int, list[Tensor], list[Tensor], list[Tensor]]] = {}
        self._rehearsed = False

    @property
    def nbytes(self) -> int:
        """Bytes of importances and anchors."""
        return sum(t.numel() * t.element_size() for t in [*self.importance.values(), *self.anchor.values()])

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse optimizers whose gradients are still scaled at the hook."""
        self._plans = {}
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and any(g.get("fused") for o in trainer.optimizers for g in o.param_groups):
            raise InputError(
                "a fused optimizer with 16-mixed precision", "gradients unscaled before the step", "set fused=False"
            )
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """See on one batch whether consolidation will work; warn where the explicit gradient cannot be stable."""
        if self.consolidate_when == "auto":
            self._rehearse(trainer, pl_module)
        if not self.importance:
            return
        largest = max(float(f.max()) for f in self.importance.values() if f.numel())
        for optimizer in trainer.optimizers:
            rate = max(group.get("lr", 0.0) for group in optimizer.param_groups)
            if isinstance(optimizer, torch.optim.SGD) and rate * self.lambda_ * largest > 2:
                log.warning(
                    "lr * lambda_ * max(F) = %.3g > 2: SGD diverges on this penalty; lower lambda_ to below %.3g",
                    rate * self.lambda_ * largest,
                    2 / (rate * largest),
                )

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Add ``lambda F (theta - anchor)`` to the gradients that this optimizer is about to use."""
        if not self.importance or self.lambda_ == 0:
            return
        parameters, importances, anchors = self._plan(pl_module, optimizer)
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        add_quadratic_gradient_(parameters, gradients, importances, anchors, self.lambda_)

    def _plan(self, module: Any, optimizer: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """The optimizer's parameters beside their importances and anchors; kept until its groups change."""
        # trainable ones, because a schedule may thaw some between two steps
        count = sum(p.requires_grad for group in optimizer.param_groups for p in group["params"])
        known = self._plans.get(id(optimizer))
        if known is not None and known[0] == count:
            parameters, importances, anchors = known[1:]
            if all(p.requires_grad for p in parameters):
                return parameters, importances, anchors
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        parameters, importances, anchors = [], [], []
        for name, parameter in module.named_parameters():
            if name not in self.importance or id(parameter) not in held or not parameter.requires_grad:
                continue
            for store in (self.importance, self.anchor):
                store[name] = pad_to(store[name].to(parameter.device), parameter.shape)
            parameters.append(parameter)
            importances.append(self.importance[name])
            anchors.append(self.anchor[name])
        self._plans[id(optimizer)] = (count, parameters, importances, anchors)
        return parameters, importances, anchors

    def _rehearse(self, trainer: Any, module: Any) -> None:
        """Fail now, not after hours of training; a loader that may be readable only once is left alone."""
        loader = plain_loader(trainer, module)
        if loader is not trainer.train_dataloader:
            self._importance_of(trainer, module, loader, first_batch_only=True)
            self._rehearsed = True

    def _importance_of(self, trainer: Any, module: Any, loader: Any, **options: Any) -> dict[str, Tensor]:
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

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        new = self._importance_of(trainer, module, loader, quiet=self._rehearsed)
        self._rehearsed = False
        # half-precision weights are anchored in fp32
        parameters = {name: p.detach().to(new[name].dtype) for name, p in module.named_parameters() if name in new}
        old = {name: (self.importance[name], self.anchor[name]) for name in self.importance}
        importance = {name: a.to(parameters.get(name, a).device) for name, (a, _) in old.items()}
        anchor = {name: b.to(parameters.get(name, b).device) for name, (_, b) in old.items()}
        if self.variant == "offline":
            merged = merge_offline(importance, anchor, new, parameters)
        else:
            merged = merge_online(importance, anchor, new, parameters, self.gamma)
        self.importance, self.anchor = merged[0], {name: value.clone() for name, value in merged[1].items()}
        self._plans = {}

    def _state(self) -> dict[str, Any]:
        return {"importance": dict(self.importance), "anchor": dict(self.anchor)}

    def _load(self, state: dict[str, Any]) -> None:
        self.importance = {name: value.clone() for name, value in state["importance"].items()}
        self.anchor = {name: value.clone() for name, value in state["anchor"].items()}
        self._plans = {}
