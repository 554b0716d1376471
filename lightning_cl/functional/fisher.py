"""The diagonal of the Fisher information, per sample, in closed form where there is one."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._fisher_engine import Engine, LogitsFn, add_squares
from lightning_cl.functional._fisher_labels import MODES
from lightning_cl.functional.seeding import generator

LossFn = Callable[[nn.Module, Any], Tensor]
_log = logging.getLogger(__name__)


def diagonal_fisher(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    labels: str = "exact",
    n_draws: int = 1,
    logits_fn: LogitsFn | None = None,
    loss_fn: LossFn | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    n_samples: int | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Mean over samples of the squared gradient of each sample's own loss.

    .. math:: F = \frac{1}{N} \sum_n \mathbb{E}_{y}\left[\left(\nabla_\theta \log p_\theta(y \mid x_n)\right)^2\right]

    with the expectation over labels as ``labels`` says (van de Ven 2025, arXiv:2502.11756; Kirkpatrick et al. 2017).
    It is never the square of a batch-mean gradient, so it does not depend on the batch size. Linear, Conv2d and
    BatchNorm layers cost one forward pass and one backward pass (exact: one per class) per *batch*; every other
    parameter, tied weights and layers called more than once cost that per *sample*. Which went which way is logged.

    ``module`` is in eval mode during the pass, and every submodule's own flag is restored; ``.grad`` is not touched.
    Memory: one fp32 tensor per parameter beside what a forward pass keeps.

    Args:
        module: Any module; a logit of an inactive class holds -inf or a very negative number, and costs nothing.
        loader: Iterable of batches on the module's device: one task's data, unshuffled and not augmented.
        labels: ``exact`` (all labels, weighted by the model), ``mc`` (``n_draws`` drawn from the model), ``empirical``
            (the true label), ``predicted`` (the model's best label). Unused with ``loss_fn``.
        n_draws: Labels per sample for ``mc``.
        logits_fn: ``(module, batch) -> (logits (N, C), targets (N,) or None)``; default ``module(batch[0]), batch[1]``,
            moved to the module's device.
        loss_fn: ``(module, batch) -> scalar``, for modules without logits: the empirical Fisher of this loss, called
            with one sample at a time.
        parameters: Name to parameter; default all that require a gradient.
        n_samples: Use this many: a random subset if ``loader.dataset`` has a length, else the first ones.
        seed: Of the drawn labels and of the subset; the same seed gives the same result.

    Returns:
        Name to a non-negative tensor of the parameter's shape, fp32 (fp64 for fp64 parameters). Zero if unused.

    Raises:
        ValueError: on an unknown mode, bad counts, no parameters, no samples, unfit logits or targets, or a result
            that is not finite.
        RuntimeError: if a closed form disagrees with autograd.

    Example:
        >>> layer = nn.Linear(1, 2, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> diagonal_fisher(layer, [(torch.tensor([[2.0]]), torch.tensor([0]))])["weight"].flatten()
        tensor([1.0000, 1.0000])
    """
    _check_arguments(labels, n_draws, n_samples, logits_fn, loss_fn)
    if parameters is None:
        parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
    fixed = [name for name, value in parameters.items() if not value.requires_grad]
    if fixed or not parameters:
        given = f"parameters that need no gradient: {fixed}" if fixed else "no parameters"
        raise ValueError(f"{given}; expected some that require a gradient. HINT: leave out what is frozen")
    with _evaluating(module), torch.inference_mode(False), torch.enable_grad():
        sums = {
            name: torch.zeros_like(value, dtype=torch.promote_types(value.dtype, torch.float32), requires_grad=False)
            for name, value in parameters.items()
        }
        batches = _subset(loader, n_samples, seed)
        if loss_fn is not None:
            count = sum(_add_losses(module, batch, loss_fn, parameters, sums) for batch in batches)
            looped = list(parameters)
        else:
            engine = Engine(module, parameters, sums, logits_fn or _default_logits, labels, n_draws, seed)
            count = sum(engine.add(batch) for batch in batches)
            looped = list(engine.looped)
    if count == 0:
        raise ValueError("loader gave no samples; expected at least one. HINT: check the task's training data")
    _log.info(
        "diagonal Fisher of %d samples: %d parameters in closed form, %d sample by sample%s",
        count,
        len(parameters) - len(looped),
        len(looped),
        f" ({', '.join(looped)})" if looped else "",
    )
    for name, value in sums.items():
        value.div_(count)
        if not value.isfinite().all():
            raise ValueError(
                f"Fisher information of {name!r} is not finite; expected finite numbers. HINT: look for NaN or inf in "
                "the weights (a training that diverged) or in the data"
            )
    return sums


def _default_logits(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        raise ValueError(
            f"batch of type {type(batch).__name__}; expected (inputs, targets). HINT: give a logits_fn that returns "
            "(logits, targets) for this batch"
        )
    device = next(module.parameters()).device
    return module(batch[0].to(device)), batch[1] if len(batch) > 1 else None


def _add_losses(
    module: nn.Module, batch: Any, loss_fn: LossFn, parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor]
) -> int:
    from lightning_cl.functional.batches import batch_size, select

    n = batch_size(batch)
    for i in range(n):
        loss = loss_fn(module, select(batch, torch.tensor([i])))
        if loss.numel() != 1:
            raise ValueError(
                f"loss of shape {tuple(loss.shape)}; expected a scalar. HINT: reduce it to the batch mean in loss_fn"
            )
        add_squares(sums, parameters, loss)
    return n


def _subset(loader: Iterable[Any], n_samples: int | None, seed: int) -> Iterator[Any]:
    """The batches, reduced to ``n_samples`` samples; the choice depends on positions only, not on the batch size."""
    if n_samples is None:
        yield from loader
        return
    from lightning_cl.functional.batches import batch_size, select

    try:
        total = len(loader.dataset)  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        total = n_samples
    chosen = torch.randperm(total, generator=generator(seed, "fisher", "subset"))[:n_samples].sort().values
    start = 0
    for batch in loader:
        stop = start + batch_size(batch)
        inside = chosen[(chosen >= start) & (chosen < stop)] - start
        if len(inside) == stop - start:
            yield batch
        elif len(inside):
            yield select(batch, inside)
        start = stop
        if start > int(chosen[-1]):
            return


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode by the flags alone: an overridden ``train`` may do more, and one flag per submodule is put back."""
    flags = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in flags:
            part.training = False
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def _check_arguments(
    labels: str, n_draws: int, n_samples: int | None, logits_fn: LogitsFn | None, loss_fn: LossFn | None
) -> None:
    if labels not in MODES:
        raise ValueError(f"labels={labels!r}; expected one of {', '.join(MODES)}. HINT: exact is the default")
    if n_draws < 1:
        raise ValueError(f"n_draws={n_draws!r}; expected an integer >= 1. HINT: more draws come closer to exact")
    if n_samples is not None and n_samples < 1:
        raise ValueError(f"n_samples={n_samples!r}; expected an integer >= 1 or None. HINT: None takes all samples")
    if logits_fn is not None and loss_fn is not None:
        raise ValueError("both logits_fn and loss_fn; expected at most one. HINT: loss_fn gives the empirical Fisher")
