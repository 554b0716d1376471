"""The factor of weight alignment, by hand."""

import torch

from lightning_cl.functional import alignment_factor


def test_by_hand():
    weight = torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]])  # lengths 5, 1, 10, 2
    factor = alignment_factor(weight, torch.tensor([0, 1]), torch.tensor([2, 3]))
    torch.testing.assert_close(factor, torch.tensor(0.5))
    weight[2:] *= factor
    torch.testing.assert_close(weight[2:].norm(dim=1).mean(), weight[:2].norm(dim=1).mean())
    assert float(alignment_factor(weight, torch.tensor([0]), torch.tensor([0]))) == 1
    assert float(alignment_factor(torch.zeros(2, 3), torch.tensor([0]), torch.tensor([1]))) == 1
