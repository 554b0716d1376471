"""Two parameters that undo the bias towards new classes."""

import torch
from torch import Tensor


def fit_bias(
    logits: Tensor, labels: Tensor, new: Tensor, *, ridge: float = 1e-3, steps: int = 100
) -> tuple[float, float]:
    r"""Scale and shift of the new classes' logits that minimise the cross-entropy (Wu et al. 2019, arXiv:1905.13260).

    .. math:: \min_{\alpha, \beta}\; \frac{1}{N}\sum_n -\log \mathrm{softmax}(q_n)_{y_n}
        + \frac{r}{2}\left((\alpha-1)^2 + \beta^2\right), \qquad
        q_{nc} = \alpha o_{nc} + \beta \text{ for a new class, else } o_{nc}

    The problem is convex in its two unknowns: Newton's method finds the minimum in float64, without a learning rate.
    The paper runs SGD on it without the ridge, which is there because separable samples have no minimum.

    Args:
        logits: o, (N, C), of the classes that compete.
        labels: y, (N,) long.
        new: Which classes are new, (C,) bool.
        ridge: r > 0.
        steps: Newton steps at most.

    Returns:
        alpha and beta.

    Raises:
        ValueError: Without samples, or if ``ridge`` is not positive.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> z = torch.randn(200, 2, generator=generator)
        >>> y = (z[:, 1] > z[:, 0]).long()
        >>> alpha, beta = fit_bias(z + torch.tensor([0.0, 3.0]), y, torch.tensor([False, True]))
        >>> beta < -2
        True
    """
    if len(logits) == 0 or not ridge > 0:
        raise ValueError(
            f"{len(logits)} samples with ridge={ridge!r}; expected at least one, and a number > 0. "
            "HINT: hold out a few samples of every class"
        )
    o, y = logits.detach().double(), labels.to(logits.device)
    of_new = new.to(o)
    inputs = torch.stack([o * of_new, of_new.expand_as(o)], dim=2)  # d q / d (alpha, beta), (N, C, 2)
    start = o.new_tensor([1.0, 0.0])
    fixed = o * (1 - of_new)

    def loss(w: Tensor) -> Tensor:
        chosen = (fixed + inputs @ w).log_softmax(1).gather(1, y[:, None])
        return -chosen.mean() + ridge / 2 * (w - start).square().sum()

    w = start.clone()
    value = loss(w)
    for _ in range(steps):
        p = (fixed + inputs @ w).softmax(1)
        mean = torch.einsum("nc,nci->ni", p, inputs)
        own = inputs[torch.arange(len(y)), y]
        gradient = (mean - own).mean(0) + ridge * (w - start)
        centred = inputs - mean[:, None]
        hessian = torch.einsum("nc,nci,ncj->ij", p, centred, centred) / len(y) + ridge * torch.eye(2).to(o)
        step = torch.linalg.solve(hessian, gradient)
        decrease = float(gradient @ step)
        if decrease < 1e-20:
            break
        length = 1.0
        while length > 1e-10 and not float(loss(w - length * step)) <= float(value) - 1e-4 * length * decrease:
            length /= 2
        if length <= 1e-10:
            break
        w = w - length * step
        value = loss(w)
    return float(w[0]), float(w[1])
