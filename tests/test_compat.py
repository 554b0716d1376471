"""Each touch of Lightning that its public interface does not offer."""

import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger
from torch import nn

from lightning_cl import _compat
from lightning_cl.callbacks._patch import InstancePatch
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit


class Logs(Net):
    """Logs one of these values in each epoch."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def on_train_epoch_end(self) -> None:
        self.log("loss", self.values[self.current_epoch])


class AtEnd(Callback):
    """What ``ended_normally`` says in ``on_train_end``; ``stop`` asks to stop after that many steps."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.answer = stop, None

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == self.stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.answer = _compat.ended_normally(trainer)


@pytest.mark.parametrize(
    ("options", "stop", "normal"),
    [
        ({"max_epochs": 2}, 0, True),
        ({"max_epochs": -1, "max_steps": 3}, 0, True),
        ({"max_epochs": 5, "min_epochs": 0}, 2, False),
        ({"max_epochs": 5}, 4, False),
        ({"max_epochs": 1}, 4, True),
        ({"max_epochs": -1, "max_steps": 4}, 4, True),
    ],
)
def test_ended_normally(options: dict[str, Any], stop: int, normal: bool):
    watch = AtEnd(stop)
    fit(Net(), data(0), watch, **options)
    assert watch.answer is normal


def test_what_early_stopping_said_of_an_earlier_fit_is_no_end_of_this_one():
    stopping, watch = EarlyStopping("loss", patience=2, check_on_train_epoch_end=True), AtEnd()
    fit(Logs([1.0] * 9), data(0), watch, stopping, max_epochs=9)
    assert (stopping.stopped_epoch, watch.answer) == (2, True)
    stopped = AtEnd(stop=3)  # in the first epoch, before early stopping looks; then in the third
    fit(Logs([0.5] * 9), data(0), stopped, stopping, max_epochs=9, min_epochs=0)
    assert stopped.answer is False
    steps = len(data(0))
    stopped = AtEnd(stop=2 * steps + 1)
    fit(Logs([0.4, 0.3, 0.2, 0.1]), data(0), stopped, stopping, max_epochs=9, min_epochs=0)
    assert stopped.answer is False
    fit(Logs([1.0] * 9), data(0), watch, stopping, max_epochs=9)
    assert watch.answer is True


def test_early_stopping_that_a_minimum_has_overruled_is_an_end():
    stopping, watch = EarlyStopping("loss", patience=1, check_on_train_epoch_end=True), AtEnd()
    fit(Logs([1.0, 1.0, 0.5, 0.4, 0.3, 0.2]), data(0), watch, stopping, max_epochs=6, min_epochs=4)
    assert (stopping.stopped_epoch, stopping.wait_count, watch.answer) == (1, 0, True)


@pytest.mark.parametrize(("epochs", "finished"), [(2, True), (3, False)])
def test_training_was_finished(tmp_path: Path, epochs: int, finished: bool):
    trainer = fit(Net(), data(0), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    other = Trainer(max_epochs=epochs, logger=False, accelerator="cpu")
    assert _compat.training_was_finished(other, checkpoint) is finished
    steps = Trainer(max_steps=4 * epochs, max_epochs=-1, logger=False, accelerator="cpu")
    assert _compat.training_was_finished(steps, checkpoint) is finished


def test_strategy_name_and_hook_owner():
    class Mine(LightningDataModule):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch

        def train_dataloader(self) -> Any:
            return data(0)

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            owner = functools.partial(_compat.hook_owner, trainer, pl_module)
            found.extend([owner("on_after_batch_transfer"), owner("transfer_batch_to_device")])

    found: list[Any] = []
    module, datamodule = Net(), Mine()
    trainer = fit(module, datamodule, Look())
    assert found == [datamodule, module]
    assert _compat.hook_owner(None, module, "on_after_batch_transfer") is module
    assert _compat.strategy_name(trainer) == "SingleDeviceStrategy"


def test_move_batch_goes_through_the_users_hooks_and_precision():
    class Hooked(Net):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] + 1, batch[1]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return batch[0] * 2, batch[1]

    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            patch = InstancePatch(pl_module, "on_after_batch_transfer", lambda *args: pytest.fail("ours was called"))
            found.append(_compat.move_batch(trainer, pl_module, (torch.ones(2, 4), torch.zeros(2).long())))
            patch.remove()

    found: list[Any] = []
    fit(Hooked(), data(0), Look(), precision="64-true")
    assert found[0][0].dtype == torch.float64
    assert torch.equal(found[0][0], torch.full((2, 4), 4.0, dtype=torch.float64))


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_patches_on_one_another_are_gone_when_both_are_removed(order: tuple[int, int]):
    class Owner:
        def step(self) -> int:
            return 1

    owner = Owner()
    for _ in range(3):
        below = InstancePatch(owner, "step", lambda: below.original() + 1)  # noqa: B023
        above = InstancePatch(owner, "step", lambda: above.original() + 10)  # noqa: B023
        assert owner.step() == 12
        patches = [below, above]
        assert patches[order[0]].remove() == (order[0] == 1)
        assert patches[order[1]].remove()
        assert "step" not in owner.__dict__


def test_unpatched_looks_behind_ours_but_not_behind_the_users_decorators():
    def doubled(method: Any) -> Any:
        @functools.wraps(method)
        def both(self: Any, *args: Any) -> Any:
            return 2 * method(self, *args)

        return both

    class Decorated:
        @doubled
        def step(self, x: int) -> int:
            return x

    owner = Decorated()
    InstancePatch(owner, "step", lambda x: -1)
    InstancePatch(owner, "step", lambda x: -2)
    assert owner.step(3) == -2
    assert _compat.unpatched(owner.step)(3) == 6


def test_training_step_gets_batch_idx_if_it_takes_it():
    class With:
        def training_step(self, batch: Any, index: int) -> Any:
            return batch, index

    class Without:
        def training_step(self, batch: Any) -> Any:
            return batch

    class Any_:
        def training_step(self, *args: Any) -> Any:
            return args

    results = [_compat.training_step_of(owner())("batch", 3) for owner in (With, Without, Any_)]
    assert results == [("batch", 3), "batch", ("batch", 3)]


def test_optimizers_of_the_trainer_or_of_the_module():
    class Two(Net):
        def configure_optimizers(self) -> Any:
            optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (self.net[0], self.net[2])]
            return optimizers, [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizers[0], 1)}]

        training_step = LightningModule.training_step

    optimizers, schedulers = _compat.optimizers_of(None, Two())
    assert [type(o).__name__ for o in optimizers] == ["SGD", "SGD"]
    assert [type(s).__name__ for s in schedulers] == ["StepLR"]
    assert [len(_compat.optimizers_of(None, Net())[i]) for i in range(2)] == [1, 0]
    trainer = SimpleNamespace(optimizers=[1, 2], lr_scheduler_configs=[SimpleNamespace(scheduler=3)])
    assert _compat.optimizers_of(trainer, None) == ([1, 2], [3])


def test_replaced_puts_back_what_was_there_and_what_was_not():
    module = Net()
    module.lr_schedulers = "mine"

    def fail() -> None:
        with _compat.replaced(module, {"lr_schedulers": 1, "optimizers": 2}):
            assert (module.lr_schedulers, module.optimizers) == (1, 2)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert module.lr_schedulers == "mine"
    assert "optimizers" not in vars(module)


def test_muted_logging(tmp_path: Path):
    class Look(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            with _compat.muted_logging(pl_module):
                pl_module.log("nothing", 1.0)
                pl_module.log_dict({"nothing": 1.0})
                pl_module.logger.log_metrics({"nothing": 1.0})
                pl_module.logger.experiment.add_image("nothing", None)

    logger = CSVLogger(tmp_path)
    trainer = fit(Net(), data(0), Look(), logger=logger, log_every_n_steps=1)
    assert "loss" in trainer.callback_metrics
    assert "nothing" not in trainer.callback_metrics
    assert trainer.loggers == [logger]
    assert "nothing" not in (Path(logger.log_dir) / "metrics.csv").read_text()


def test_evaluating_restores_every_flag():
    module = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with _compat.evaluating(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in module.modules()] == [True, True, False]


def test_random_state_comes_back_and_survives_a_file(tmp_path: Path):
    import random

    def draw() -> list[float]:
        return [float(torch.rand(())), float(np.random.rand()), float(np.random.randn()), random.random()]

    draw()
    torch.save(_compat.rng_state(), tmp_path / "state.pt")
    expected = draw()
    draw()
    _compat.set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


def test_seeded_is_reproducible_and_leaves_no_trace():
    before, variables = torch.get_rng_state(), dict(os.environ)
    draws = []
    for seed in (1, 1, 2):
        with _compat.seeded(seed):
            draws.append(float(torch.rand(())))
    assert draws[0] == draws[1] != draws[2]
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(os.environ) == variables


def test_train_source_is_asked_for_the_loader():
    seen = []

    class Wraps(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            self.patch = InstancePatch(_compat.train_source(trainer), "dataloader", self.load)

        def load(self) -> Any:
            seen.append(self.patch.original())
            return seen[-1]

    class Holds(LightningDataModule):
        def train_dataloader(self) -> Any:
            return data(0)

    fit(Net(), data(0), Wraps())
    fit(Net(), Holds(), Wraps())
    assert [type(loader).__name__ for loader in seen] == ["DataLoader"] * 2


def test_flops_are_counted_in_one_sum_without_a_walk_through_modules():
    from lightning_cl._compat_flops import flop_counter

    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    with flop_counter() as counter:
        model(torch.rand(5, 8))
    assert counter.get_total_flops() == 2 * 5 * (8 * 16 + 16 * 4)
    assert set(counter.get_flop_counts()) <= {"Global"}  # nothing by module
