"""Which batches a memory that is filled step by step is offered."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from lightning_cl import AGEM, DER, DGR, ERACE, EWC, MAS, LwF, Replay
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit


class Echo(LightningModule):
    """Logits that say which sample they are of; its weight stays."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.weight * x, -x], 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self(x), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def numbers(n: int = 24, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(torch.arange(float(n))[:, None], torch.arange(n) % 2), batch_size=6, **options)


def test_a_step_that_is_called_off_leaves_no_batch_behind():
    class Net(Echo):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if self.current_epoch == 0 and batch_idx == 2 else None

    der = DER(100)
    fit(Net(), numbers(), der, max_epochs=2)
    stored: Any = der.memory.at(slice(None))["0"]
    assert stored.flatten().tolist() == list(range(12))
    assert torch.equal(stored, der.memory.extras(slice(None))["logits"][:, :1])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "make",
    [
        lambda: Replay(10),
        lambda: DER(10),
        LwF,
        lambda: DGR(hidden=(4,), latent=2, decoder="gaussian"),
        lambda: Replay(10, policy="herding"),
        lambda: EWC(1.0),
        lambda: MAS(1.0),
    ],
)
def test_a_collate_function_with_nothing_to_give(make: Callable[[], Any], first: bool):
    def collate(samples: list[Any]) -> Any:
        whole = [sample for sample in samples if (sample[0][0] >= 6) == first]
        return default_collate(whole) if whole else None

    callback = make()
    loader = numbers(12, collate_fn=collate)
    if callback.state_key.startswith("Replay") and "features" in callback.memory.needs:
        callback._facts.features_fn = lambda module, batch: batch[0]
    for _ in range(2):
        fit(Echo(), loader, callback)
    assert callback.n_tasks == 2


@pytest.mark.parametrize("make", [lambda: DER(100), lambda: ERACE(100), lambda: Replay(100, fill="step")])
def test_a_second_fit_of_one_trainer_is_another_task(make: Callable[[], Any]):
    callback, module = make(), Net()
    trainer = fit(module, data(0), callback, max_epochs=2)
    assert callback.memory.n_seen == 24
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, data(1))
    assert (callback.memory.n_seen, callback.n_tasks) == (48, 2)


@pytest.mark.parametrize("make", [lambda: ERACE(500), lambda: AGEM(500, fill="step"), lambda: Replay(500, fill="step")])
def test_samples_that_another_memory_mixes_in_are_not_stored_again(make: Callable[[], Any]):
    callback, replay = make(), Replay(500, name="other")
    for task in range(2):
        fit(Net(), data(task), callback, replay)
    assert callback.memory.n_seen == replay.memory.n_seen == 48


def test_two_memories_draw_as_many_as_the_batch_has_each():
    sizes: list[int] = []

    class Counting(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    both = [Replay(50, name="a"), Replay(50, name="b")]
    for task in range(2):
        fit(Counting(), data(task), *both, max_epochs=1)
    assert sizes == [6] * 4 + [18] * 4
