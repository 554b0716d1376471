r"""The quadratic penalty of EWC, SI, MAS and L2-SP: value, gradient, and the sum of several as one.

Everywhere ``importance`` is the per-sample mean of :mod:`lightning_cl.functional.fisher` (or another importance),
``anchor`` the parameters that are pulled towards, and the penalty is

.. math:: \frac{\lambda}{2} \sum_i F_i (\theta_i - \theta^*_i)^2

added to the batch-mean loss (Kirkpatrick et al. 2017, eq. 3). Its gradient is ``lambda * F * (theta - anchor)``.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lightning_cl.functional._chunks import chunks, is_uniform, pays, wide


def quadratic_penalty(
    parameters: Mapping[str, Tensor], importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor], lambda_: float
) -> Tensor:
    r"""The penalty's value, differentiable: ``lambda / 2 * sum F (theta - anchor)^2``.

    Slow and plain, for logs and as the oracle of :func:`add_quadratic_gradient_`.

    Args:
        parameters: Name to tensor; names without an importance are not penalised.
        importance: Name to tensor of the parameter's shape.
        anchor: Name to tensor of the parameter's shape; the names of ``importance``.
        lambda_: Strength.

    Returns:
        A scalar, at least fp32.

    Example:
        >>> theta = {"w": torch.tensor([3.0, 1.0])}
        >>> quadratic_penalty(theta, {"w": torch.tensor([2.0, 5.0])}, {"w": torch.tensor([1.0, 1.0])}, lambda_=10.0)
        tensor(40.)
    """
    terms = [
        (importance[name] * (wide(value) - anchor[name]).square()).sum()
        for name, value in parameters.items()
        if name in importance
    ]
    return lambda_ / 2 * torch.stack(terms).sum() if terms else torch.zeros(())


@torch.no_grad()
def add_quadratic_gradient_(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    importances: Sequence[Tensor],
    anchors: Sequence[Tensor],
    lambda_: float,
) -> None:
    """Add the penalty's gradient, ``lambda * F * (theta - anchor)``, to ``gradients`` in place.

    The product is formed in fp32 (or wider), whatever the dtypes, and rounded once into the gradient. Large CPU
    tensors are walked in chunks that stay in cache, so that each of the four tensors crosses the memory bus once;
    small ones, and everything on an accelerator or sharded (DTensor), go through ``torch._foreach_*``.

    Args:
        parameters: The n parameters.
        gradients: Their n gradients (none may be None), changed in place.
        importances: n tensors of the parameters' shapes, any float dtype.
        anchors: n tensors of the parameters' shapes, normally fp32.
        lambda_: Strength; multiply it by the scaler's scale if the gradients are still scaled.

    Raises:
        ValueError: if the four sequences differ in length.
    """
    lengths = [len(parameters), len(gradients), len(importances), len(anchors)]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"parameters, gradients, importances, anchors of lengths {lengths}; expected equal lengths. HINT: leave "
            "out the parameters that have no gradient or no importance"
        )
    together: tuple[list[Tensor], ...] = ([], [], [], [])
    for group in zip(parameters, gradients, importances, anchors, strict=True):
        if not is_uniform(*group):
            _add_mixed(*group, lambda_)
        elif pays(*group):
            _add_in_chunks(*group, lambda_)
        else:
            for tensors, tensor in zip(together, group, strict=True):
                tensors.append(tensor)
    if together[0]:
        difference = torch._foreach_sub(together[0], together[3])
        torch._foreach_addcmul_(together[1], together[2], difference, value=lambda_)


def _add_in_chunks(parameter: Tensor, gradient: Tensor, importance: Tensor, anchor: Tensor, lambda_: float) -> None:
    """The in-cache walk; all four of one dtype, contiguous, on the CPU."""
    for difference, theta, grad, fisher, centre in chunks(parameter, gradient, importance, anchor):
        torch.sub(theta, centre, out=difference)
        grad.addcmul_(fisher, difference, value=lambda_)


def _add_mixed(parameter: Tensor, gradient: Tensor, importance: Tensor, anchor: Tensor, lambda_: float) -> None:
    """Any mixture of dtypes: everything in fp32 or wider until the last rounding."""
    gradient.add_(wide(parameter).sub(anchor).mul_(importance), alpha=lambda_)


def merge_offline(
    importance: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    new_importance: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""The sum of all penalties so far and a new one, as one penalty (offline EWC, one term per task).

    .. math:: A' = A + F, \qquad \theta^{*\prime} = \frac{A \theta^* + F \theta}{A + F}

    A sum of quadratics is a quadratic: its gradient equals that of the separate terms exactly (their values differ
    by a constant), so two tensors per parameter hold any number of tasks. Where ``A + F = 0`` the anchor is theta.

    Args:
        importance: Merged importance so far; ``{}`` before the first task. Grown parameters are padded with zeros.
        anchor: Merged anchor so far, with the names of ``importance``.
        new_importance: Importance of the task just learned.
        parameters: Parameters at the end of that task; the names of ``new_importance`` at least.

    Returns:
        ``(importance, anchor)``, new tensors. A name that has no new importance (frozen by now) is kept as it was.

    Example:
        >>> importance, anchor = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 0.0])}
        >>> merge_offline(importance, anchor, {"w": torch.tensor([3.0, 0.0])}, {"w": torch.tensor([4.0, 5.0])})
        ({'w': tensor([4., 0.])}, {'w': tensor([3., 5.])})
    """
    merged, centres = {}, {}
    for name, old, centre, new, theta in _pairs(importance, anchor, new_importance, parameters):
        if new is None or theta is None:
            merged[name], centres[name] = old.clone(), centre.clone()
            continue
        total = old + new
        share = torch.where(total > 0, new / total, torch.ones_like(total))
        merged[name], centres[name] = total, centre + share * (theta - centre)
        # a + 1 * (b - a) is not always b in floating point
        centres[name] = torch.where(share == 1, theta, centres[name])
    return merged, centres


def merge_online(
    importance: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    new_importance: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    gamma: float = 1.0,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""Online EWC: old importance decays, and the anchor is where the newest task ended.

    .. math:: A' = \gamma A + F, \qquad \theta^{*\prime} = \theta

    (Schwarz et al. 2018, "Progress & Compress".) Arguments and result are those of
    :func:`merge_offline`, and ``gamma`` in [0, 1].

    Raises:
        ValueError: if gamma is outside [0, 1].
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma!r}; expected a number in [0, 1]. HINT: 1.0 forgets nothing")
    merged, centres = {}, {}
    for name, old, centre, new, theta in _pairs(importance, anchor, new_importance, parameters):
        merged[name] = gamma * old if new is None else gamma * old + new
        centres[name] = centre.clone() if theta is None else theta.clone()
    return merged, centres


def merge_average(
    importance: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    new_importance: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
    gamma: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    r"""A running mean of importances around where the newest task ended.

    .. math:: A' = \gamma A + (1 - \gamma) F, \qquad \theta^{*\prime} = \theta

    (FACIL, with a constant gamma; PyCIL, with gamma = (t - 1) / t at the t-th of equal tasks.) Before the first task A
    is 0, so a constant gamma lets the first F in with 1 - gamma too. Arguments and result are those of
    :func:`merge_offline`, and ``gamma`` in [0, 1].

    Raises:
        ValueError: if gamma is outside [0, 1].
    """
    share = {name: (1 - gamma) * wide(value) for name, value in new_importance.items()}
    return merge_online(importance, anchor, share, parameters, gamma)


def pad_to(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """The tensor in the leading corner of zeros of ``shape``: for parameters that have grown (new head rows).

    Raises:
        ValueError: if ``shape`` is smaller somewhere or has another number of dimensions.

    Example:
        >>> pad_to(torch.ones(1, 2), (2, 2))
        tensor([[1., 1.],
                [0., 0.]])
    """
    if tuple(tensor.shape) == tuple(shape):
        return tensor
    if tensor.dim() != len(shape) or any(old > new for old, new in zip(tensor.shape, shape, strict=True)):
        raise ValueError(
            f"shape={tuple(shape)}; expected {tensor.dim()} dimensions, each at least those of {tuple(tensor.shape)}. "
            "HINT: parameters may grow between tasks, never shrink or change their rank"
        )
    padded = tensor.new_zeros(tuple(shape))
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded


def _pairs(
    importance: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    new_importance: Mapping[str, Tensor],
    parameters: Mapping[str, Tensor],
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None, Tensor | None]]:
    """Name, old importance, old anchor, new importance, parameter; the old ones padded, zero where there is none."""
    for name in dict.fromkeys([*importance, *new_importance]):
        if name in new_importance and name not in parameters:
            raise ValueError(
                f"new importance of {name!r} without a parameter; expected a parameter for each. HINT: pass the "
                "parameters that the importance was computed for"
            )
        theta = wide(parameters[name].detach()) if name in parameters else None
        new = wide(new_importance[name]) if name in new_importance else None
        if name not in importance:
            assert theta is not None  # it has a new importance
            yield name, torch.zeros_like(theta), torch.zeros_like(theta), new, theta
            continue
        shape = importance[name].shape if theta is None else theta.shape
        yield name, pad_to(wide(importance[name]), shape), pad_to(wide(anchor[name]), shape), new, theta
