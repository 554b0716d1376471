"""The diagonal of the Fisher information, per sample, in closed form where there is one."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.functional._cotangents import LABELS, LIKELIHOODS, Cotangents, Labels, cotangents
from lightning_cl.functional._importance_engine import OutputsFn
from lightning_cl.functional._importance_pass import default_outputs, mean_over_samples
from lightning_cl.functional._sample_by_sample import add_gradients
from lightning_cl.functional.seeding import generator

LossFn = Callable[[nn.Module, Any], Tensor]


def diagonal_fisher(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    labels: str = "exact",
    likelihood: str = "classification",
    n_draws: int = 1,
    top_k: int = 10,
    logits_fn: OutputsFn | None = None,
    loss_fn: LossFn | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    n_samples: int | None = None,
    max_bytes: int = 2**24,
    fallback: str = "auto",
    distributed: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Mean over samples of the squared gradient of each sample's own loss.

    .. math:: F = \frac{1}{N} \sum_n \mathbb{E}_{y}\left[\left(\nabla_\theta \log p_\theta(y \mid x_n)\right)^2\right]

    with the expectation over labels as ``labels`` says (van de Ven 2025, arXiv:2502.11756; Kirkpatrick et al. 2017).
    It is never the square of a batch-mean gradient (but for ``labels="batch_mean"``), so it does not depend on the
    batch size. Products (linear layers with or without token axes, convolutions and their transposes of one to three
    dimensions, HF's Conv1D, attention), norms, embeddings, and parameters that are added, multiplied or expanded cost
    one forward pass and one backward pass per cotangent (exact: one per class) and *batch*; every other parameter
    (recurrent layers, say) costs that per *sample*. Weights that are used more than once are summed over their uses
    before the square. Which parameters went which way is logged, and on the first batch every closed form is compared
    with autograd.

    ``module`` is in eval mode during the pass, and every submodule's own flag is restored; ``.grad`` is not touched.
    Memory: one fp32 tensor per parameter beside what a forward pass keeps, and ``max_bytes``.

    Args:
        module: Any module; a logit of an inactive class holds -inf or a very negative number, and costs nothing.
        loader: Iterable of batches on the module's device: one task's data, unshuffled and not augmented.
        labels: Which labels' gradients are squared: ``exact`` (all labels, weighted by the model), ``mc`` (``n_draws``
            drawn from the model), ``empirical`` (the true label), ``predicted`` (the model's best label; Hsu et al.
            2018), ``probability_weighted`` (the true label's square times its probability under the model; mammoth's),
            ``top_k`` (exact over the k likeliest classes, ``n_draws`` draws for the rest: large label sets),
            ``batch_mean`` (the square of a batch's mean gradient at the true label, for reproducing other codes only:
            it shrinks with the batch size). Unused with ``loss_fn``.
        likelihood: ``classification`` (softmax; labels (N,)), ``multi_label`` (independent sigmoids; labels (N, C) in
            [0, 1], the log-likelihood is their sum), ``gaussian`` (regression with unit variance, the loss is
            ``||f - y||^2 / 2``; targets of the outputs' shape). Outputs may have positions, (N, ..., C): a sample's
            loss is then the mean over its positions for classification (label -100 is left out), the sum for the
            others.
        n_draws: Labels per sample for ``mc`` and ``top_k``.
        top_k: k of ``top_k``.
        logits_fn: ``(module, batch) -> (logits, targets or None)``; default ``module(batch[0]), batch[1]``, and for
            mappings ``module(**batch).logits, batch["labels"]``, moved to the module's device.
        loss_fn: ``(module, batch) -> scalar``, for modules without logits: the empirical Fisher of this loss, called
            with one sample at a time.
        parameters: Name to parameter; default all that require a gradient.
        n_samples: Use this many: a random subset if ``loader.dataset`` has a length, else the first ones.
        max_bytes: For per-sample gradients and patches that are held at once.
        fallback: For parameters without a closed form: ``loop``, ``vmap``, or ``auto`` (vmap on an accelerator).
        distributed: Share the work with the other processes of the default group: each is given the same loader, takes
            every n-th batch, and gets the whole result. Drawn labels (mc, top_k) are then others than in one process.
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
        tensor([1., 1.])
    """
    how = Labels(labels, likelihood, n_draws, top_k)
    check_labels(how, logits_fn, loss_fn)
    draws = generator(seed, "fisher", "labels")
    outputs_fn = with_checked_shape(logits_fn or default_outputs, likelihood)

    def make(outputs: Tensor, targets: Tensor | None) -> Cotangents:
        return cotangents(outputs, targets, how, draws)

    def add_losses(parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor], batch: Any) -> int:
        assert loss_fn is not None
        return _add_losses(module, batch, loss_fn, parameters, sums)

    def add_batch_mean(parameters: Mapping[str, Tensor], sums: Mapping[str, Tensor], batch: Any) -> int:
        outputs, targets = outputs_fn(module, batch)
        vector = make(outputs.detach(), targets).vector(0)
        # n times the square of the mean
        add_gradients(sums, parameters, outputs, vector / len(outputs) ** 0.5)
        return len(outputs)

    add_batch = add_losses if loss_fn is not None else add_batch_mean if labels == "batch_mean" else None
    return mean_over_samples(
        module,
        loader,
        what="Fisher information",
        outputs_fn=outputs_fn,
        make_cotangents=make,
        add_batch=add_batch,
        parameters=parameters,
        power=2,
        n_samples=n_samples,
        max_bytes=max_bytes,
        fallback=fallback,
        distributed=distributed,
        seed=seed,
    )


def with_checked_shape(outputs_fn: OutputsFn, likelihood: str) -> OutputsFn:
    """Refuse outputs that have not one row per sample, and targets that are no labels; gaussian means may be flat."""

    def outputs(module: nn.Module, batch: Any) -> tuple[Tensor, Tensor | None]:
        logits, targets = outputs_fn(module, batch)
        if likelihood == "gaussian" and logits.dim() == 1:
            return logits.unsqueeze(1), None if targets is None else targets.reshape(-1, 1)
        if logits.dim() < 2:
            raise ValueError(
                f"logits of shape {tuple(logits.shape)}; expected (N, C), one row per sample. HINT: give a logits_fn "
                "that returns (logits, targets), or a loss_fn for a module without logits"
            )
        if likelihood == "classification" and targets is not None and targets.is_floating_point():
            raise ValueError(
                f"targets of {targets.dtype} with likelihood='classification'; expected {len(logits)} integer labels. "
                "HINT: likelihood='multi_label' or 'gaussian'; a logits_fn that returns (logits, None) for soft labels"
            )
        return logits, targets

    return outputs


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
        add_gradients(sums, parameters, loss)
    return n


def check_labels(how: Labels, logits_fn: OutputsFn | None, loss_fn: LossFn | None) -> None:
    """Refuse labels that cannot be had.

    Raises:
        ValueError: on an unknown mode or likelihood, counts below 1, and what does not go together.
    """
    if how.mode not in LABELS:
        raise ValueError(f"labels={how.mode!r}; expected one of {', '.join(LABELS)}. HINT: exact is the default")
    if how.likelihood not in LIKELIHOODS:
        known = ", ".join(LIKELIHOODS)
        raise ValueError(f"likelihood={how.likelihood!r}; expected one of {known}. HINT: classification is the default")
    if how.n_draws < 1:
        raise ValueError(f"n_draws={how.n_draws!r}; expected an integer >= 1. HINT: more draws come closer to exact")
    if how.top_k < 1:
        raise ValueError(f"top_k={how.top_k!r}; expected an integer >= 1. HINT: a larger k comes closer to exact")
    unfit = {"multi_label": ("top_k",), "gaussian": ("top_k", "predicted", "probability_weighted")}
    if how.mode in unfit.get(how.likelihood, ()):
        raise ValueError(
            f"labels={how.mode!r} with likelihood={how.likelihood!r}; expected exact, mc or empirical. HINT: exact "
            "costs one backward pass per output"
        )
    if logits_fn is not None and loss_fn is not None:
        raise ValueError("both logits_fn and loss_fn; expected at most one. HINT: loss_fn gives the empirical Fisher")
