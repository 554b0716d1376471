"""A task is consolidated exactly once, however its training ends."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lightning_cl import EWC
from lightning_cl.callbacks._plain_loader import plain_loader
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.functional import diagonal_fisher
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit, same


class Counted(EWC):
    """Counts its consolidations."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.consolidations = 0

    def _consolidate(self, trainer: Any, module: Any, loader: Any) -> None:
        self.consolidations += 1
        super()._consolidate(trainer, module, loader)


class AtBatch(Callback):
    def __init__(self, batch: int, what: Any) -> None:
        self.batch, self.what = batch, what

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.batch:
            self.what(trainer)


def counts(ewc: Counted) -> tuple[int, int, str]:
    return ewc.consolidations, ewc.n_tasks, ewc.phase


def test_normal_end_and_a_second_call():
    ewc, module = Counted(1.0), Net()
    trainer = fit(module, data(0), ewc)
    assert counts(ewc) == (1, 1, "consolidated")
    ewc.consolidate(trainer, module)
    assert counts(ewc) == (1, 1, "consolidated")
    fit(module, data(1), ewc)
    assert counts(ewc) == (2, 2, "consolidated")


@pytest.mark.parametrize("options", [{"max_steps": 3, "max_epochs": -1}, {"max_steps": 4, "max_epochs": 1}])
def test_end_by_steps(options: dict[str, Any]):
    ewc = Counted(1.0)
    fit(Net(), data(0), ewc, **options)
    assert counts(ewc) == (1, 1, "consolidated")


def test_early_stopping_is_a_normal_end():
    ewc = Counted(1.0)
    stopping = EarlyStopping("loss", patience=1, min_delta=1e9, check_on_train_epoch_end=True)
    trainer = fit(Net(), data(0), ewc, stopping, max_epochs=20)
    assert 0 < trainer.current_epoch < 19
    assert counts(ewc) == (1, 1, "consolidated")


def test_a_stop_request_mid_task_does_not_consolidate():
    ewc, module = Counted(1.0), Net()
    stop = AtBatch(2, lambda trainer: setattr(trainer, "should_stop", True))
    trainer = fit(module, data(0), ewc, stop, max_epochs=5, min_epochs=0)
    assert trainer.global_step < 20
    assert counts(ewc) == (0, 0, "learning")
    fit(module, data(0), ewc)
    assert counts(ewc) == (1, 1, "consolidated")


def test_an_exception_does_not_consolidate():
    ewc = Counted(1.0)

    def fail(trainer: Any) -> None:
        raise ArithmeticError("in the middle")

    with pytest.raises(ArithmeticError, match="in the middle"):
        fit(Net(), data(0), ewc, AtBatch(2, fail))
    assert counts(ewc) == (0, 0, "learning")


def test_resuming_a_finished_fit_consolidates_before_training(tmp_path: Path):
    """``last.ckpt`` is written before ``on_train_end``: a kill in between loses the consolidation."""
    saved = ModelCheckpoint(tmp_path, save_last=True)
    module, ewc = Net(), Counted(1.0)
    fit(module, data(0), ewc, saved, enable_checkpointing=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"][ewc.state_key]["phase"] == "learning"
    again, resumed = Net(), Counted(1.0)
    fit(again, data(0), resumed, ckpt_path=tmp_path / "last.ckpt")
    assert counts(resumed) == (1, 1, "consolidated")
    assert same(resumed.state_dict(), ewc.state_dict())


def test_resuming_a_fit_that_was_consolidated_does_it_no_second_time(tmp_path: Path):
    module, ewc = Net(), Counted(1.0)
    trainer = fit(module, data(0), ewc)
    trainer.save_checkpoint(tmp_path / "boundary.ckpt")
    resumed = Counted(1.0)
    fit(Net(), data(0), resumed, ckpt_path=tmp_path / "boundary.ckpt")
    assert counts(resumed) == (0, 1, "consolidated")
    assert same(resumed.state_dict(), ewc.state_dict())


def test_manual_consolidates_when_told():
    ewc, module = Counted(1.0, consolidate="manual"), Net()
    trainer = fit(module, data(0), ewc)
    assert counts(ewc) == (0, 0, "trained")
    ewc.consolidate(trainer, module)
    assert counts(ewc) == (1, 1, "consolidated")


def test_best_weights_are_taken_and_the_last_ones_stay(tmp_path: Path):
    class Scored(Net):
        def on_train_epoch_end(self) -> None:
            self.log("score", float(self.current_epoch == 0))

    module, ewc = Scored(), EWC(1.0, select="best")
    best = ModelCheckpoint(tmp_path, monitor="score", mode="max", save_on_train_epoch_end=True)
    fit(module, data(0), best, ewc, enable_checkpointing=True, max_epochs=3)
    chosen = load_state(best.best_model_path)["state_dict"]
    assert "epoch=0" in best.best_model_path
    assert not torch.equal(chosen["net.0.weight"], module.net[0].weight)
    other = Net()
    other.load_state_dict(chosen)
    oracle = diagonal_fisher(other, data(0))
    for name, value in oracle.items():
        torch.testing.assert_close(ewc.importance[name], value)
        assert torch.equal(ewc.anchor[name], chosen[name])


def test_best_without_a_checkpoint_is_refused():
    with pytest.raises(InputError, match=r"select='best' without a best checkpoint; expected a ModelCheckpoint"):
        fit(Net(), data(0), EWC(1.0, select="best"))


PROCESS = """
import sys
from lightning_cl import EWC
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit
ewc = EWC(50.0, state_path=sys.argv[1])
fit(Net(), data(int(sys.argv[2])), ewc)
print("TASKS", ewc.n_tasks)
"""


def test_a_fast_dev_run_leaves_state_path_alone(tmp_path: Path):
    path = tmp_path / "ewc.pt"
    fit(Net(), data(0), EWC(50.0, state_path=path), fast_dev_run=True)
    assert not path.exists()


def test_state_path_carries_over_to_a_new_process(tmp_path: Path):
    path = tmp_path / "deep" / "ewc.pt"
    run = [sys.executable, "-c", PROCESS, str(path), "0"]
    done = subprocess.run(run, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2], check=True)
    assert "TASKS 1" in done.stdout
    assert [file.name for file in path.parent.iterdir()] == ["ewc.pt"]
    here, module = EWC(50.0), Net()
    fit(module, data(0), here)
    there = EWC(50.0, state_path=path)
    copy = Net()
    copy.load_state_dict(module.state_dict())
    for one, callback in ((module, here), (copy, there)):
        fit(one, data(1), callback)
    assert there.n_tasks == here.n_tasks == 2
    assert torch.equal(module.weights, copy.weights)
    assert same(load_state(path), there.state_dict())


def test_state_is_tensors_and_numbers_and_another_version_is_refused(tmp_path: Path):
    ewc = EWC(2.0, name="first")
    ewc.consolidate(None, Net(), data(0))
    torch.save(ewc.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    other = EWC(7.0, name="first")
    other.load_state_dict(state)
    assert same(other.state_dict(), ewc.state_dict())
    assert other.state_key == "EWC.first", "no tunable in it"
    with pytest.raises(InputError, match=r"state version 2 of EWC.first; expected version 1"):
        other.load_state_dict({**state, "version": 2})


@pytest.mark.parametrize("option", ["consolidate", "select"])
def test_unknown_choices_are_refused(option: str):
    with pytest.raises(InputError, match=f"{option}='never'; expected .* HINT"):
        EWC(1.0, **{option: "never"})


def test_importance_is_taken_of_plain_training_data():
    module = Net()
    loader = data(0, shuffle=True, drop_last=True, batch_size=7)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1)
    trainer.fit(module, loader)
    plain = plain_loader(trainer, module)
    assert torch.equal(torch.cat([x for x, _ in plain]), loader.dataset.tensors[0])
    module.importance_dataloader = lambda: "mine"
    assert plain_loader(trainer, module) == "mine"


def test_several_loaders_are_refused_before_training():
    class Several(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("training has started")

    with pytest.raises(InputError, match=r"train_dataloader of type 'dict'; expected one DataLoader. HINT: define"):
        fit(Several(), {"a": data(0), "b": data(1)}, EWC(1.0))
