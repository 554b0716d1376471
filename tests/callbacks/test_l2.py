"""L2 inside real Trainers, against a plain loop with one autograd quadratic for each task."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl import L2
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.path_examples import Loop, lightning
from tests.callbacks.replay_examples import fit


class Oracle(Loop):
    """In Hsu's convention: lambda without 1/2."""

    def __init__(self, strength: float, accumulate: bool, optimizer: str) -> None:
        super().__init__(optimizer)
        self.strength, self.summed, self.anchors = strength, accumulate, []

    def penalty(self) -> Tensor:
        anchors = self.anchors if self.summed else self.anchors[-1:]
        terms = [((p - a) ** 2).sum() for anchor in anchors for p, a in zip(self.parameters, anchor, strict=True)]
        return self.strength * sum(terms, torch.zeros((), dtype=torch.float64))

    def end(self, loader: Any) -> None:
        self.anchors.append(self.values())


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(accumulate: bool, optimizer: str):
    oracle = Oracle(0.5, accumulate, optimizer)
    oracle.learn(tasks=3, epochs=2)
    l2 = L2(1.0, accumulate=accumulate)
    module = lightning(l2, optimizer)
    for got, expected in zip(module.parameters(), oracle.parameters, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    assert {float(value.max()) for value in l2.importance.values()} == {3.0 if accumulate else 1.0}
    assert float((Oracle(0.0, accumulate, optimizer).module.weights - module.weights).abs().max()) > 1e-3


@pytest.mark.parametrize("accumulate", [False, True])
def test_frozen_parameters_keep_their_penalty_and_new_rows_are_free_at_first(accumulate: bool):
    module, l2 = Net(), L2(1.0, accumulate=accumulate)
    fit(module, data(0), l2)
    first = {name: value.clone() for name, value in l2.anchor.items()}
    module.net[0].requires_grad_(False)
    head = nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = module.net[2].weight, module.net[2].bias
    module.net[2] = head
    fit(module, data(1), l2)
    assert torch.equal(l2.anchor["net.0.weight"], first["net.0.weight"])
    assert bool((l2.importance["net.0.weight"] == 1).all())
    expected = torch.tensor([2.0 if accumulate else 1.0] * 3 + [1.0] * 2)
    assert torch.equal(l2.importance["net.2.bias"], expected)
    mean = (first["net.2.bias"] + head.bias[:3].detach()) / 2
    torch.testing.assert_close(l2.anchor["net.2.bias"][:3], mean if accumulate else head.bias[:3].detach())
    assert torch.equal(l2.anchor["net.2.bias"][3:], head.bias[3:].detach())


def test_reads_no_data_and_starts_from_a_pretrained_model():
    module, l2 = Net(), L2(1e4)
    l2.consolidate(None, module)
    before = module.weights.clone()

    class Pairs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch["a"], batch_idx)

    pairs = Pairs(optimizer="Adam", lr=1e-3)
    fit(pairs, {"a": data(0), "b": data(1)}, l2)
    naive = Net(optimizer="Adam", lr=1e-3)
    fit(naive, data(0))
    assert float((pairs.weights - before).norm()) < 0.5 * float((naive.weights - before).norm())
    assert l2.n_tasks == 2
