import torch
import torch.nn.functional as F

from lightning_cl.functional import mask_logits, present_classes


def test_present_classes():
    labels = torch.tensor([[3, 0], [-100, 3]])
    assert present_classes(labels, 5).tolist() == [True, False, False, True, False]
    assert not present_classes(labels[:0], 5).any()


def test_masked_cross_entropy_is_that_over_the_present_columns_alone():
    torch.manual_seed(0)
    logits, labels = torch.randn(8, 6, dtype=torch.float64, requires_grad=True), torch.tensor([4, 1, 1, 4, 2, 1, 2, 4])
    loss = F.cross_entropy(mask_logits(logits, present_classes(labels, 6)), labels)
    columns = [1, 2, 4]
    oracle = torch.stack(
        [-(row[y].exp() / sum(row[c].exp() for c in columns)).log() for row, y in zip(logits, labels, strict=True)]
    ).mean()
    torch.testing.assert_close(loss, oracle)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, torch.autograd.grad(oracle, logits)[0])
    assert not gradient[:, [0, 3, 5]].any(), "old and future classes are not pushed on"
