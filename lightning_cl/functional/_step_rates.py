"""What an optimizer's step multiplies a constant gradient with in the long run."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rate(NamedTuple):
    """An elementwise rate ``1 / (scale * sqrt(moment) + offset)``, not yet computed."""

    moment: Tensor
    scale: float | Tensor
    offset: float

    def dense(self) -> Tensor:
        """The rate as a tensor."""
        return (self.moment.sqrt() * self.scale + self.offset).reciprocal()


def step_rates(
    optimizer: torch.optim.Optimizer, group: Mapping[str, Any], parameters: Sequence[Tensor]
) -> list[float | Rate]:
    r"""Rates of the step that ``optimizer`` has just made: right behind it, before its next one.

    A step moves a parameter with the constant gradient g by ``-rate * g`` once running means have settled; weight
    decay and ``maximize`` belong to g. With :math:`\hat v` and all bias corrections those of this very step:

    ========================= =====================================================================================
    SGD                       ``lr (1 - dampening) / (1 - momentum)``, Nesterov or not; ``lr`` without momentum
    Adam, AdamW               ``lr / (sqrt(v_hat) + eps)``; amsgrad: the largest ``v`` so far
    NAdam                     that times ``(1 - mu_t) / (1 - prod mu) + mu_{t+1} / (1 - prod mu * mu_{t+1})``
    RAdam                     ``lr``, and once rectified ``lr r_t / sqrt(v_hat)`` with eps as torch has it
    RMSprop                   ``lr / (sqrt(v) + eps) / (1 - momentum)``; centered: the variance
    Adagrad                   ``lr / (1 + (t - 1) lr_decay) / (sqrt(sum) + eps)``
    ========================= =====================================================================================

    Args:
        optimizer: One of these, or a subclass with the same ``step``.
        group: The entry of ``optimizer.param_groups``.
        parameters: Parameters of it that were in the step (their ``.grad`` is not None).

    Returns:
        A number, or for the adaptive ones a lazy elementwise :class:`Rate`, for each parameter; 0 for those that have
        not been stepped yet.

    Raises:
        ValueError: for any other optimizer.

    Example:
        >>> w = torch.zeros(1)
        >>> sgd = torch.optim.SGD([w], lr=0.1, momentum=0.9)
        >>> [round(rate, 3) for rate in step_rates(sgd, sgd.param_groups[0], [w])]
        [1.0]
    """
    rule = rule_of(optimizer)
    if rule is _sgd:
        return [_sgd(group, {})] * len(parameters)
    states = [optimizer.state.get(parameter) for parameter in parameters]
    return [rule(group, state) if state else 0.0 for state in states]


def rule_of(optimizer: Any) -> Callable[[Mapping[str, Any], Mapping[str, Any]], float | Rate]:
    """The rule for an optimizer's parameters.

    Raises:
        ValueError: if there is none.
    """
    step = inspect.unwrap(type(optimizer).step)
    for kind, rule in _RULES.items():
        if isinstance(optimizer, kind) and step is inspect.unwrap(kind.step):
            return rule
    raise ValueError(
        f"optimizer {type(optimizer).__name__!r}; expected one whose step is known: "
        f"{', '.join(kind.__name__ for kind in _RULES)}. HINT: take one of these, or the gradient form of the penalty"
    )


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    rate, momentum = float(group["lr"]), group["momentum"]
    # torch ignores the dampening where there is no momentum
    return rate * (1 - group["dampening"]) / (1 - momentum) if momentum else rate


def _adam(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Rate:
    moment = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
    return _rooted(moment, group, _correction(group["betas"][1], state["step"]))


def _nadam(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Rate:
    (beta1, beta2), decay, step = group["betas"], group["momentum_decay"], float(state["step"])
    now, after = (beta1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
    product = float(state["mu_product"])
    share = (1 - now) / (1 - product) + after / (1 - product * after)
    return _rooted(state["exp_avg_sq"], group, _correction(beta2, step), 1 / share)


def _radam(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Rate:
    beta2, step = group["betas"][1], float(state["step"])
    correction = 1 - beta2**step
    last = 2 / (1 - beta2) - 1
    rho = last - 2 * step * beta2**step / correction
    if rho <= 5:
        return float(group["lr"])
    rectified = ((rho - 4) * (rho - 2) * last / ((last - 4) * (last - 2) * rho)) ** 0.5
    # torch adds eps to the root before the bias is corrected
    factor = 1 / (float(group["lr"]) * rectified * correction**0.5)
    return Rate(state["exp_avg_sq"], factor, group["eps"] * factor)


def _rmsprop(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Rate:
    moment = state["square_avg"]
    if group["centered"]:
        # rounding may leave less than nothing
        moment = moment.addcmul(state["grad_avg"], state["grad_avg"], value=-1).clamp_(min=0)
    return _rooted(moment, group, 1.0, 1 - group["momentum"])


def _adagrad(group: Mapping[str, Any], state: Mapping[str, Any]) -> float | Rate:
    slower = 1 + (float(state["step"]) - 1) * group["lr_decay"]
    return _rooted(state["sum"], group, 1.0, slower)


def _rooted(moment: Tensor, group: Mapping[str, Any], root: float | Tensor, factor: float = 1.0) -> float | Rate:
    """``lr / (factor * (sqrt(moment) / root + eps))``."""
    rate = float(group["lr"])
    if rate == 0:
        return 0.0
    return Rate(moment, factor / (root * rate), factor * group["eps"] / rate)


def _correction(beta: float, step: float | Tensor) -> float | Tensor:
    """Root of the bias correction; on an accelerator it stays there, so that nothing waits for it."""
    if isinstance(step, Tensor) and step.device.type == "cpu":
        step = float(step)
    return (1 - beta**step) ** 0.5


_RULES: dict[type[torch.optim.Optimizer], Callable[[Mapping[str, Any], Mapping[str, Any]], float | Rate]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
    torch.optim.NAdam: _nadam,
    torch.optim.RAdam: _radam,
    torch.optim.RMSprop: _rmsprop,
    torch.optim.Adagrad: _adagrad,
}
