"""iCaRL, BiC and WA, killed in a fit, in their own stage, and in consolidation, end as the uninterrupted run."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_cl import WA, BiC, FineTuningModule, ICaRL, Replay
from lightning_cl.sequence import run_sequence
from lightning_cl.streams import TaskDataModule
from tests.callbacks.replay_examples import fit
from tests.resume.helpers import Killed, Recorder, contents, differences, module, stream, trainer
from tests.resume.test_penalties import Dies

METHODS: dict[str, Any] = {
    "icarl": lambda: [ICaRL(9)],
    "bic": lambda: [BiC(14, validation_fraction=0.3)],
    "wa": lambda: [Replay(9), WA(distillation=True, clip_weights=True)],
}
#: where each of them works at the end of a task
INSIDE = {"icarl": ["_set_means"], "bic": ["fit_bias", "_consolidate"], "wa": ["align", "_consolidate"]}


def run(callbacks: list[Any], folder: Path, kill_at: tuple[str, int] | None = None) -> Any:
    try:
        return run_sequence(
            module(), stream(), [*callbacks, Recorder(kill_at)], run_dir=folder, trainer=trainer(), batch_size=6,
            progress_bar=False, checkpoint_every_n_steps=2,
        )  # fmt: skip
    except Killed:
        return None


def killed_inside(callback: Any, name: str) -> None:
    """Dies behind the work of a method, in the second task, before anything is written."""
    original = getattr(callback, name)

    def dies(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if callback.n_tasks == 1:
            raise Killed

    setattr(callback, name, dies)


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_ends_as_the_uninterrupted_one(method: str, tmp_path: Path) -> None:
    run(METHODS[method](), tmp_path / "whole")
    expected = contents(tmp_path / "whole")
    assert any(key.startswith("rule.") for key in expected["model"]["state_dict"]) is (method != "wa")
    folders = []
    # BiC holds out four of the twenty samples of a task
    for kill_at in (("batch end", 5), ("train end", 6 if method == "bic" else 8)):
        folders.append(tmp_path / kill_at[0])
        assert run(METHODS[method](), folders[-1], kill_at) is None
    for name in INSIDE[method]:
        callbacks = METHODS[method]()
        killed_inside(callbacks[-1], name)
        folders.append(tmp_path / name)
        assert run(callbacks, folders[-1]) is None
    for folder in folders:
        assert run(METHODS[method](), folder)["status"] == "finished"
        assert differences(contents(folder), expected) == []


def learn(method: str, folder: Path, killed_at: int | None) -> tuple[FineTuningModule, list[Any]]:
    """Two tasks on Trainers of one's own; the second is killed at a step, and goes on in new objects."""

    def second(callbacks: list[Any], model: FineTuningModule, *others: Any, **more: Any) -> None:
        keep = ModelCheckpoint(folder, every_n_train_steps=3, save_top_k=-1, save_last=False, filename="{step}")
        fit(model, TaskDataModule(tasks[1], batch_size=6), *others, *callbacks, keep, max_epochs=3,
            enable_checkpointing=True, **more)  # fmt: skip

    tasks = stream()
    callbacks, model = METHODS[method](), _plain()
    fit(model, TaskDataModule(tasks[0], batch_size=6), *callbacks, max_epochs=3)
    if killed_at is None:
        second(callbacks, model)
    else:
        with pytest.raises(Killed):
            second(callbacks, model, Dies(killed_at))
        callbacks, model = METHODS[method](), _plain(class_names=["c0", "c1"])
        second(callbacks, model, ckpt_path=folder / f"step={killed_at // 3 * 3}.ckpt")
    return model, callbacks


def _plain(**options: Any) -> FineTuningModule:
    # a Trainer without our run folder restores no global random numbers
    model = module(**options)
    model.backbone[-1] = torch.nn.Identity()
    return model


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_fit_ends_as_the_uninterrupted_one(method: str, tmp_path: Path) -> None:
    model, callbacks = learn(method, tmp_path / "whole", None)
    for killed_at in (4, 9 if method == "bic" else 12):
        again, others = learn(method, tmp_path / str(killed_at), killed_at)
        assert differences(model.state_dict(), again.state_dict()) == []
        for callback, other in zip(callbacks, others, strict=True):
            assert differences(callback.state_dict(), other.state_dict()) == []
    assert callbacks[-1].n_tasks == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_next_task_can_be_another_process(method: str, tmp_path: Path) -> None:
    tasks = stream()

    def first(callbacks: list[Any]) -> tuple[list[Any], FineTuningModule]:
        model = _plain()
        fit(model, TaskDataModule(tasks[0], batch_size=6), *callbacks)
        return callbacks, model

    callbacks, model = first(METHODS[method]())
    fit(model, TaskDataModule(tasks[1], batch_size=6), *callbacks)

    def with_files() -> list[Any]:
        made = METHODS[method]()
        for callback in made:
            callback.state_path = tmp_path / f"{callback.name}.pt"
        return made

    _, again = first(with_files())
    fit(again, TaskDataModule(tasks[1], batch_size=6), *with_files())
    assert differences(model.state_dict(), again.state_dict()) == []
