"""Modules and an autograd loop that the tests of importance share."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.callbacks.ewc_examples import Net


class Adapted(Net):
    """A Net whose step, batch or output differs; ``loss_of`` is what its gradients are."""

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(*batch)


def oracle(module: Any, loader: Any, loss: Any) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient, one autograd call each."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    count = 0
    for batch in loader:
        for i in range(len(batch[1])):
            value = loss(*(part[i : i + 1] for part in batch))
            gradients = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += 0 if gradient is None else gradient**2
            count += 1
    return {name: value / count for name, value in total.items()}


def assert_agree(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-9)
    assert max(float(value.abs().max()) for value in got.values()) > 1e-5
