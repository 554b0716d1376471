"""Importance from batches that are hard, or not at all, to split into samples."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lightning_cl import EWC
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import data
from tests.callbacks.importance_examples import Adapted, assert_agree, oracle
from tests.callbacks.replay_examples import fit


@dataclass
class Graph:
    nodes: Tensor
    sizes: Tensor
    y: Tensor

    def to(self, device: Any) -> None:
        """In place, as some packages do."""
        self.nodes = self.nodes.to(device)


def collate_graphs(samples: list[Any]) -> Graph:
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    sizes = torch.arange(len(x)) % 2 + 1
    return Graph(x.repeat_interleave(sizes, 0), sizes, y)


class Graphs(Adapted):
    def training_step(self, batch: Graph, batch_idx: int) -> Any:
        rows = torch.repeat_interleave(torch.arange(len(batch.sizes)), batch.sizes)
        pooled = torch.zeros(len(batch.sizes), 4).index_add(0, rows, batch.nodes) / batch.sizes[:, None]
        return self.loss_of(pooled, batch.y)


def test_batches_that_cannot_be_split_are_collated_sample_by_sample():
    module, ewc = Graphs(), EWC(1.0)
    fit(module, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate_graphs), ewc)
    assert_agree(ewc.importance, oracle(module, data(0), module.loss_of))
    single, ewc = DataLoader(data(0).dataset, batch_size=1, collate_fn=collate_graphs), EWC(1.0)
    ewc.consolidate(None, module, single)
    assert_agree(ewc.importance, oracle(module, data(0), module.loss_of))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from data(0).dataset


def test_batches_that_nobody_can_split_are_refused():
    loader = DataLoader(Stream(), batch_size=6, collate_fn=collate_graphs)
    message = r"a batch of type 'Graph' that cannot be split into samples; expected .* HINT: .* batch_size=1"
    with pytest.raises(InputError, match=message):
        EWC(1.0).consolidate(None, Graphs(), loader)
    ewc, module = EWC(1.0), Graphs()
    ewc.consolidate(None, module, DataLoader(Stream(), batch_size=1, collate_fn=collate_graphs))
    assert_agree(ewc.importance, oracle(module, data(0), module.loss_of))
