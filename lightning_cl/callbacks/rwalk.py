"""Riemannian walk."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Unpack

from torch import Tensor

from lightning_cl.callbacks._fisher import TaskFisher
from lightning_cl.callbacks._penalty import PenaltyOptions, QuadraticPenalty
from lightning_cl.callbacks._riemannian_path import RiemannianPath
from lightning_cl.errors import InputError
from lightning_cl.functional.path_integral import average_scores, scale_to_unit
from lightning_cl.functional.penalty import pad_to


class RWalk(QuadraticPenalty):
    r"""EWC's importance plus one from the way of training: Fisher and path score (Chaudhry et al. 2018).

    Riemannian walk (arXiv:1801.10112, section 4). The penalty around the newest weights is
    :math:`\frac{\lambda}{2}\sum_i (\hat F_i + \hat s_i)(\theta_i-\theta^*_i)^2`, both terms scaled to [0, 1]. The score
    of a task is the sum over intervals of a few steps of

    .. math:: \max\left(0, \frac{\Delta L_i}{\frac{1}{2} \tilde F_i\,\Delta\theta_i^2 + \epsilon}\right), \qquad
        \Delta L_i = -\sum_{steps} g_i\,\Delta\theta_i,

    with the gradient :math:`g` of the loss without the penalty (see :class:`~lightning_cl.SI` for what counts as a
    step), and :math:`\tilde F` the moving average of squared batch gradients, which goes on over tasks. After a task
    the score is averaged with that of the tasks before, :math:`s \leftarrow (s + s_{new})/2`; the first is not halved.

    What the paper leaves open, or its code does otherwise, is decided so: the Fisher of the penalty is the mean over
    samples of squared per-sample gradients at the task's end, :math:`F \leftarrow \gamma F + F_{new}`, which does not
    depend on the batch size (the paper takes :math:`\tilde F` there too); :math:`\tilde F` is that of the interval
    before, and in the very first interval its own; a last, shorter interval counts; negative scores are set to zero per
    interval. The paper's penalty has no 1/2: lambda is twice its lambda.

    State: importance, anchor, merged Fisher and score, and the running Fisher; while a task is learned four tensors per
    parameter more, and two buffers that are not saved. Unsupported: closures called more than once per step (LBFGS).

    Args:
        lambda_: Strength of the penalty, >= 0, or ``"auto"``; twice the paper's.
        gamma: Decay of the Fisher of earlier tasks, in (0, 1].
        alpha: Weight of the newest interval in the running Fisher, in (0, 1].
        epsilon: Damping of the score, > 0, in units of the loss (the authors' code has 1e-3).
        interval: Optimizer steps of an interval (the authors' code has 10 on MNIST, 50 on CIFAR).
        scale_terms: Scale Fisher and score to [0, 1], each over all parameters together; else add them as they are.
        labels, likelihood, n_draws, top_k, n_samples, max_bytes, logits_fn, loss_fn, seed: Of the Fisher, see
            :class:`~lightning_cl.EWC`.
        name, apply, lambda_schedule, include, exclude, normalize, importance_dtype, importance_path, consolidate,
            select, state_path: See :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`.

    Raises:
        InputError: For values outside these ranges, or what EWC refuses.
    """

    def __init__(
        self,
        lambda_: float | Literal["auto"],
        *,
        gamma: float = 1.0,
        alpha: float = 0.9,
        epsilon: float = 1e-3,
        interval: int = 10,
        scale_terms: bool = True,
        labels: str = "exact",
        likelihood: str = "classification",
        n_draws: int = 1,
        top_k: int = 10,
        n_samples: int | None = None,
        max_bytes: int = 2**24,
        logits_fn: Callable[..., Any] | None = None,
        loss_fn: Callable[..., Any] | None = None,
        seed: int = 0,
        name: str = "rwalk",
        **penalty: Unpack[PenaltyOptions],
    ) -> None:
        super().__init__(lambda_, name=name, **penalty)
        for argument, value in (("gamma", gamma), ("alpha", alpha)):
            if not 0 < value <= 1:
                raise InputError(f"{argument}={value!r}", "a number in (0, 1]", "leave it out")
        if not 0 < epsilon < float("inf"):
            raise InputError(f"epsilon={epsilon!r}", "a finite number > 0", "epsilon=1e-3 is the default")
        if not isinstance(interval, int) or interval < 1:
            raise InputError(f"interval={interval!r}", "an integer >= 1", "interval=10 is the default")
        self.gamma, self.scale_terms = gamma, scale_terms
        self._task_fisher = TaskFisher(
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
        self._path = RiemannianPath(interval, alpha, epsilon)
        self._fisher: dict[str, Tensor] = {}
        self._score: dict[str, Tensor] = {}
        self._merged: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept between tasks."""
        stores = (self._fisher, self._score, self._path.running)
        return super().nbytes + sum(t.numel() * t.element_size() for store in stores for t in store.values())

    def _rehearse(self, trainer: Any, module: Any, loader: Any) -> None:
        self._task_fisher.rehearse(trainer, module, loader)

    def _on_task_start(self, trainer: Any, module: Any) -> None:
        if self.consolidate_when == "auto":
            self._path.clear()

    def _before_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        self._path.take(named, optimizer)

    def _after_step(self, module: Any, optimizer: Any, named: dict[str, Tensor]) -> None:
        self._path.add(named)

    def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, Tensor]:
        named = self._selected(module)
        new = {name: f for name, f in self._task_fisher(trainer, module, loader).items() if name in named}
        # a penalty from a file counts as the Fisher of an earlier task
        known = self._fisher or {name: value.float() for name, value in self.importance.items()}
        old = {name: f.to(new[name].device) if name in new else f for name, f in known.items()}
        fisher = {name: self.gamma * f for name, f in old.items()}
        for name, value in new.items():
            fisher[name] = value + pad_to(fisher[name], value.shape) if name in old else value
        score = average_scores(self._score, self._path.finish(named))
        self._merged = fisher, score
        terms = (scale_to_unit(fisher), scale_to_unit(score)) if self.scale_terms else (fisher, score)
        # a model that was trained elsewhere has no score
        return {name: terms[0][name] + terms[1].get(name, 0) for name in new}

    def _merge(
        self,
        importance: Mapping[str, Tensor],
        anchor: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # earlier tasks are in the new importance; what is frozen by now keeps its own
        return {**importance, **new}, {**anchor, **parameters}

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        super()._consolidate(trainer, module, loader)
        self._fisher, self._score = self._merged
        self._path.clear()

    def _state(self) -> dict[str, Any]:
        return {
            **super()._state(),
            "fisher": dict(self._fisher),
            "score": dict(self._score),
            "path": self._path.state(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        super()._load(state)
        self._fisher, self._score = dict(state["fisher"]), dict(state["score"])
        self._path.load(state["path"])
