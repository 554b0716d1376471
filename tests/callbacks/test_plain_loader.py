"""What a task's training data are, whatever serves them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from lightning_cl import EWC, Replay
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit


class Endless(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = next(iter(data(0)))[:2]
        while True:
            yield from zip(x, y, strict=True)


def dataset() -> Any:
    x, y = next(iter(data(0)))[:2]
    x, y = x.repeat(5, 1)[:40], y.repeat(5)[:40]
    x[:, 0] = torch.arange(len(x))
    return TensorDataset(x, y)


@pytest.mark.parametrize("by_batch", [False, True])
def test_a_sampler_of_a_part_leaves_the_rest_out(by_batch: bool):
    part = SubsetRandomSampler(range(3, 20))
    options: Any = {"batch_sampler": BatchSampler(part, 4, False)} if by_batch else {"sampler": part, "batch_size": 4}
    replay = Replay(100)
    fit(Net(), DataLoader(dataset(), **options), replay)
    stored: Any = replay.memory.at(slice(None))["0"]
    assert sorted(stored[:, 0].int().tolist()) == list(range(3, 20))


@pytest.mark.parametrize("options", [{"max_steps": 5, "max_epochs": -1}, {"max_epochs": 2, "limit_train_batches": 5}])
def test_data_without_an_end(options: dict[str, Any]):
    replay = Replay(100)
    fit(Net(), DataLoader(Endless(), batch_size=4), replay, **options)
    assert (replay.n_tasks, replay.memory.n_seen) == (1, 20)
    ewc = EWC(1.0)
    fit(Net(), DataLoader(Endless(), batch_size=4), ewc, **options)
    assert ewc.n_tasks == 1


def test_data_that_can_be_read_once_are_left_for_the_training():
    stream = iter(Endless())

    class Once(IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return stream

    first: list[Tensor] = []

    class Keeping(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            first.append(batch[0])
            return super().training_step(batch, batch_idx)

    fit(Keeping(), DataLoader(Once(), batch_size=4), EWC(1.0), max_epochs=1, limit_train_batches=3)
    assert torch.equal(first[0], next(iter(data(0)))[0][:4])


def test_several_loaders_are_refused_before_the_training():
    trained: list[int] = []

    class Several(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            trained.append(batch_idx)
            return super().training_step(batch["a"], batch_idx)

    with pytest.raises(InputError, match=r"train_dataloader of type 'dict'; .*HINT: define importance_dataloader"):
        fit(Several(), {"a": data(0), "b": data(1)}, Replay(10))
    assert not trained
    fit(Several(), {"a": data(0), "b": data(1)}, Replay(10, fill="step"), max_epochs=1)
    assert trained


def test_a_trial_of_the_code_leaves_the_file_alone(tmp_path: Path):
    path = tmp_path / "replay.pt"
    fit(Net(), data(0), Replay(10, state_path=path), fast_dev_run=True)
    assert not path.exists()
    fit(Net(), data(0), Replay(10, state_path=path))
    assert path.exists()
