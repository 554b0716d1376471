"""Kronecker factors of the Fisher information of linear and convolutional layers."""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_cl.functional._cotangents import Labels, cotangents
from lightning_cl.functional._importance_engine import Engine, MakeCotangents, OutputsFn
from lightning_cl.functional._importance_pass import default_outputs, evaluating, subset, trainable
from lightning_cl.functional._kronecker_layer import MatrixLayer
from lightning_cl.functional._kronecker_pass import KroneckerPass
from lightning_cl.functional.fisher import check_labels, with_checked_shape
from lightning_cl.functional.seeding import generator

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KroneckerFactors:
    r"""The Fisher block :math:`A \otimes G` of one layer's matrix W ``(out, [1 +] in)``, whose column 0 is the bias.

    With vec stacking columns, :math:`\mathrm{vec}(D)^T (A \otimes G)\, \mathrm{vec}(D) = \mathrm{tr}(D^T G D A)`.

    Args:
        layer: Names and layout of the parameters.
        A: ``([1 +] in, [1 +] in)``, mean over samples and positions of ``a a^T``.
        G: ``(out, out)``, mean over samples of the sum over positions of ``g g^T``.
    """

    layer: MatrixLayer
    A: Tensor
    G: Tensor


def kronecker_factors(module: nn.Module, loader: Iterable[Any], **options: Any) -> dict[str, KroneckerFactors]:
    r"""The factors of :func:`kronecker_fisher` alone, by the name of the layer's weight; same arguments but ``rest``.

    Example:
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> factors = kronecker_factors(layer, [(torch.tensor([[3.0, 1.0]]), torch.tensor([0]))])["weight"]
        >>> factors.A, factors.G
        (tensor([[9., 3.],
                [3., 1.]]), tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]]))
    """
    return kronecker_fisher(module, loader, rest="none", **options)[0]


def kronecker_fisher(
    module: nn.Module,
    loader: Iterable[Any],
    *,
    labels: str = "exact",
    likelihood: str = "classification",
    n_draws: int = 1,
    top_k: int = 10,
    logits_fn: OutputsFn | None = None,
    parameters: Mapping[str, Tensor] | None = None,
    layers: Collection[str] | None = None,
    rest: Literal["diagonal", "none"] = "diagonal",
    n_samples: int | None = None,
    max_bytes: int = 2**24,
    fallback: str = "auto",
    seed: int = 0,
) -> tuple[dict[str, KroneckerFactors], dict[str, Tensor]]:
    r"""Kronecker factors of every layer that has them, and the diagonal Fisher of all other parameters.

    For a layer :math:`z = W a` with gradient :math:`g = \nabla_z (-\log p(y|x))`, the Fisher block of W is
    :math:`\mathbb{E}[a a^T \otimes g g^T] \approx A \otimes G` with

    .. math:: A = \mathbb{E}[a a^T], \qquad G = \mathbb{E}[g g^T]

    (Martens & Grosse 2015, arXiv:1503.05671; Ritter et al. 2018, arXiv:1805.07810), means over samples, where a begins
    with a 1 if there is a bias. It is exact for one sample, and where a and g are independent. With positions (tokens,
    the locations of a convolution, whose a is a patch) A is the mean over samples *and positions* and G the mean over
    samples of the *sum* over positions: the scale of the Fisher of the whole sample if positions are uncorrelated
    (Grosse & Martens 2016, arXiv:1602.01407, who put the factor on the other side; the product is the same). Padding
    tokens count as positions.

    Layers are products with a weight that is used once: ``nn.Linear`` with or without token axes, ``x @ W``, HF's
    Conv1D, and convolutions of one to three dimensions with one group. Grouped and transposed convolutions, weights
    that are tied or used more than once, the packed projections of ``nn.MultiheadAttention``, norms, embeddings,
    recurrent layers and plain parameters are not; ``rest`` says what happens to them, and the log which they are.
    Parameters that no sample uses are in neither result.

    ``module`` is in eval mode during the pass, and every submodule's own flag is restored; ``.grad`` is not touched.
    Cost: a forward pass and a backward pass per cotangent (exact: one per class) for each batch, and as much again for
    the rest. Memory: ``in^2 + out^2`` numbers per layer. Of several processes, each makes the whole pass.

    Args:
        module, loader, labels, likelihood, n_draws, top_k, logits_fn, parameters, n_samples, max_bytes, fallback, seed:
            See :func:`lightning_cl.functional.diagonal_fisher`; ``batch_mean`` is not among the labels.
        layers: Names of the weights that may have factors; default all. A layer of n inputs needs n² numbers.
        rest: ``"diagonal"``: the diagonal Fisher of the parameters in no layer; ``"none"``: nothing of them.

    Returns:
        ``(factors, diagonal)``: name of the weight to :class:`KroneckerFactors`, and name of the parameter to a
        tensor of its shape. fp32, fp64 for fp64 parameters.

    Raises:
        ValueError: on an unknown mode, bad counts, no parameters, no samples, unfit logits or targets, a weight that
            is used in another way later, or a result that is not finite.
    """
    how = Labels(labels, likelihood, n_draws, top_k)
    check_labels(how, logits_fn, None)
    if labels == "batch_mean":
        raise ValueError("labels='batch_mean'; expected labels of single samples. HINT: empirical is the nearest")
    if rest not in ("diagonal", "none"):
        raise ValueError(f"rest={rest!r}; expected 'diagonal' or 'none'. HINT: leave it out for 'diagonal'")
    outputs_fn = with_checked_shape(logits_fn or default_outputs, likelihood)

    def make_cotangents() -> MakeCotangents:
        # draws of its own for each, so that the diagonal is that of diagonal_fisher
        draws = generator(seed, "fisher", "labels")
        return lambda outputs, targets: cotangents(outputs, targets, how, draws)

    count, engine = 0, None
    with evaluating(module), torch.inference_mode(False), torch.enable_grad():
        parameters = trainable(module, parameters)
        blocks = KroneckerPass(module, parameters, layers, outputs_fn, make_cotangents(), max_bytes, seed)
        for batch in subset(loader, n_samples, seed):
            count += blocks.add(batch)
            left = blocks.rest
            if rest == "none" or count == 0 or not left:
                continue
            if engine is None:
                sums = {name: _zeros(value) for name, value in left.items()}
                options: dict[str, Any] = {"max_bytes": max_bytes, "fallback": fallback, "seed": seed}
                engine = Engine(module, left, sums, outputs_fn, make_cotangents(), **options)
            engine.add(batch)
    return _means(blocks, engine.sums if engine else {}, count)


def _means(
    blocks: KroneckerPass, sums: Mapping[str, Tensor], count: int
) -> tuple[dict[str, KroneckerFactors], dict[str, Tensor]]:
    """Sums over ``count`` samples as means, without what no sample uses."""
    if count == 0:
        raise ValueError("loader gave no samples; expected at least one. HINT: check the task's training data")
    factors = {
        name: KroneckerFactors(block.layer, block.A / block.positions, block.G / count)
        for name, block in blocks.layers.items()
        if block.positions and bool(block.G.any())
    }
    diagonal = {name: (value / count).clamp_min_(0) for name, value in sums.items() if bool(value.any())}
    for name, value in ({name: f.A.sum() + f.G.sum() for name, f in factors.items()} | diagonal).items():
        if not bool(value.isfinite().all()):
            raise ValueError(
                f"Fisher information of {name!r} is not finite; expected finite numbers. HINT: look for NaN or inf in "
                "the weights (a training that diverged) or in the data"
            )
    taken = {name for f in factors.values() for name in f.layer.names} | diagonal.keys()
    _log.info(
        "Kronecker factors of %d samples for %d layers; diagonal: %s; nothing: %s",
        count,
        len(factors),
        ", ".join(diagonal) or "none",
        ", ".join(name for name in blocks.parameters if name not in taken) or "none",
    )
    return factors, diagonal


def _zeros(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32), requires_grad=False)
