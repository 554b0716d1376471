import torch
from torch.nn.utils.rnn import pad_sequence

from lightning_cl.functional.padding import pad_rows


def test_as_pad_sequence_has_it():
    draws = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 7, 2])
    flat = torch.randint(1, 100, (13,), generator=draws)
    starts = lengths.cumsum(0) - lengths
    for rows in (torch.arange(4), torch.tensor([2, 0]), torch.tensor([1, 1, 3])):
        values, mask = pad_rows(flat, starts[rows], lengths[rows], -1)
        pieces = [flat[s : s + n] for s, n in zip(starts[rows], lengths[rows], strict=True)]
        assert torch.equal(values, pad_sequence(pieces, batch_first=True, padding_value=-1))
        assert torch.equal(mask.sum(1), lengths[rows])
        assert torch.equal(mask, values != -1)


def test_no_rows_and_no_values():
    nobody = torch.zeros(0, dtype=torch.long)
    assert pad_rows(torch.arange(3), nobody, nobody)[0].shape == (0, 0)
    values, mask = pad_rows(nobody, torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    assert values.shape == mask.shape == (2, 0)
