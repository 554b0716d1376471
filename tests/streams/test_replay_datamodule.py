from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import CombinedLoader
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_cl.callbacks.replay import Replay
from lightning_cl.errors import InputError
from lightning_cl.streams.replay_datamodule import ReplayDataModule
from tests.callbacks.replay_examples import Classifier, Numbers, as_dict, as_tuple, fit, loader, same


def train(wrap: bool, structure: Any = as_tuple, **options: Any) -> tuple[Classifier, Replay]:
    module, replay = Classifier(structure), Replay(10, **options)
    torch.manual_seed(3)
    for task in range(2):
        data: Any = Numbers(task, structure)
        fit(module, ReplayDataModule(data, replay) if wrap else data, replay)
        assert "on_after_batch_transfer" not in {**module.__dict__, **data.__dict__}
    return module, replay


@pytest.mark.parametrize("options", [{}, {"fill": "step", "batch_size": 3}, {"policy": "class_balanced"}])
@pytest.mark.parametrize("structure", [as_tuple, as_dict])
def test_it_trains_as_the_callback_alone_does(structure: Any, options: dict[str, Any]):
    wrapped, replay = train(True, structure, **options)
    alone, other = train(False, structure, **options)
    assert wrapped.seen == alone.seen
    assert torch.equal(wrapped.weights, alone.weights)
    assert same(replay.state_dict(), other.state_dict())
    assert min(wrapped.seen[-1]) < 24


class Full(Numbers):
    def __init__(self, task: int) -> None:
        super().__init__(task)
        self.save_hyperparameters()
        self.calls: list[str] = []
        self.prepare_data_per_node = False

    def prepare_data(self) -> None:
        self.calls.append("prepare_data")

    def setup(self, stage: str) -> None:
        self.calls.append(f"setup {stage == 'fit'} {self.trainer is not None}")

    def teardown(self, stage: str) -> None:
        self.calls.append(f"teardown {stage == 'fit'}")

    def val_dataloader(self) -> DataLoader:
        return loader(self.task_id, shuffle=False)

    def importance_dataloader(self) -> DataLoader:
        self.calls.append("importance")
        return loader(self.task_id, shuffle=False)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.calls.append(f"{len(batch[1])} samples")
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"task": self.task_id}


def test_everything_else_is_the_wrapped_datamodules():
    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.seen.append(batch[1].tolist())

    inner, replay = Full(1), Replay(10)
    replay.memory.add(next(iter(loader(0))))
    data = ReplayDataModule(inner, replay)
    trainer = fit(Validated(), data, replay, max_epochs=1, num_sanity_val_steps=0)
    assert inner.trainer is trainer
    assert inner.calls[:2] == ["prepare_data", "setup True True"]
    assert inner.calls[-2:] == ["importance", "teardown True"]
    assert inner.calls[2:-2] == ["12 samples"] * 4 + ["6 samples"] * 4
    assert data.task_id == 1
    assert data.state_dict() == {"task": 1}
    assert data.prepare_data_per_node is False
    assert data.hparams == {"task": 1}
    with pytest.raises(AttributeError, match="nothing"):
        data.nothing  # noqa: B018


def test_hooks_count_as_overridden_only_where_they_are():
    plain, full = ReplayDataModule(Numbers(0), Replay(1)), ReplayDataModule(Full(0), Replay(1))
    for hook, overridden in (("on_after_batch_transfer", True), ("val_dataloader", True), ("test_dataloader", False)):
        assert is_overridden(hook, full) is overridden
        assert is_overridden(hook, plain) is False
    assert is_overridden("train_dataloader", plain)


def test_lightning_sees_the_users_own_loaders_within():
    class Combined(LightningDataModule):
        def train_dataloader(self) -> Any:
            return CombinedLoader({"a": loader(0), "b": loader(1)}, "min_size")

    replay = Replay(10)
    simple = ReplayDataModule(Numbers(0), replay).train_dataloader()
    assert isinstance(simple.flattened[0], DataLoader)
    both = ReplayDataModule(Combined(), replay).train_dataloader()
    batch, _, _ = next(iter(both))
    replay.memory.add(batch)
    mixed, _, _ = next(iter(both))
    assert {name: len(part[1]) for name, part in mixed.items()} == {"a": 12, "b": 12}


def test_the_loader_can_be_read_without_a_trainer():
    replay = Replay(10)
    data = ReplayDataModule(Numbers(1), replay)
    replay.memory.add(next(iter(loader(0))))
    batches = [batch for batch, _, _ in data.train_dataloader()]
    assert [len(y) for _, y in batches] == [12] * 4


def test_bad_input():
    with pytest.raises(InputError, match=r"Replay\(mode='separate'\); expected mode='mixed'. HINT: pass the Replay"):
        ReplayDataModule(Numbers(0), Replay(10, mode="separate"))
    foreign: Any = SimpleNamespace(train_dataloader=loader)
    with pytest.raises(InputError, match=r"datamodule of type types.SimpleNamespace; expected a light.*HINT: pass the"):
        ReplayDataModule(foreign, Replay(10))
