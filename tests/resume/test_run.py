"""What may and may not go on in a run folder."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from lightning_cl import EWC, Replay
from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.sequence import run_sequence
from lightning_cl.streams import Stream
from tests.resume.helpers import contents, differences, learn, module, stream, trainer, without_times


def epochs(events: list[Any]) -> int:
    return sum(event[0] == "epoch start" for event in events)


def test_a_finished_run_returns_at_once(tmp_path: Path):
    _, first = learn(tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.ckpt") if file.name != "model.ckpt"}
    (tmp_path / "results.json").unlink()  # as after a kill right before it was written
    events, again = learn(tmp_path)
    assert events == []
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first))
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
    assert files == {file: file.stat().st_mtime_ns for file in files}
    for file in tmp_path.rglob("*.ckpt"):
        load_state(file)


def test_never_starts_anew(tmp_path: Path):
    _, first = learn(tmp_path)
    events, again = learn(tmp_path, resume="never")
    assert epochs(events) == 4
    assert without_times(again) == without_times(first)
    learn(tmp_path, resume="never", kill_at=("batch end", 4))
    assert list(tmp_path.glob("checkpoints/fit-*"))
    assert not (tmp_path / "results.json").exists()
    events, again = learn(tmp_path, resume="never")
    assert epochs(events) == 4
    assert without_times(again) == without_times(first)


def test_a_changed_config_is_refused_by_its_keys(tmp_path: Path):
    config = {"optimizer": {"lr": 0.1, "betas": [0.9, 0.99]}, "data_dir": "here", "trainer": {"max_epochs": 2}}
    learn(tmp_path, config=config, kill_at=("batch end", 3))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    changed = {**config, "optimizer": {"lr": 0.2, "betas": [0.9, 0.99]}, "new": 1, "data_dir": "there"}
    with pytest.raises(InputError) as refused:
        learn(tmp_path, config=changed, batch_size=7)
    for part in ("optimizer.lr: 0.1 -> 0.2", "new: None -> 1", "batch_size: 6 -> 7", "HINT: resume=never"):
        assert part in str(refused.value)
    assert "data_dir" not in str(refused.value)
    assert "betas" not in str(refused.value)
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    # what lies outside goes on
    _, results = learn(tmp_path, config={**config, "data_dir": "there", "num_workers": 2}, num_workers=2)
    assert results["status"] == "finished"


def test_other_callbacks_are_refused(tmp_path: Path):
    learn(tmp_path, "er", kill_at=("batch end", 3))
    with pytest.raises(InputError, match=r"EWC\.ewc.* for a half-done run of .*Replay\.replay"):
        run_sequence(module(), stream(), [EWC(1.0)], run_dir=tmp_path, method="er", trainer=trainer(), batch_size=6,
                     progress_bar=False, checkpoint_every_n_steps=2)  # fmt: skip
    with pytest.raises(InputError, match=r"same state_key.* give each its own name="):
        run_sequence(module(), stream(), [Replay(3), Replay(4)], run_dir=tmp_path / "new", trainer=trainer())


def test_what_lies_outside_lies_at_the_top_of_a_config_only(tmp_path: Path):
    config = {"model": {"prune": 0.0, "logger": "a"}, "prune": {"after": None}, "logger": "a"}
    learn(tmp_path, config=config, kill_at=("batch end", 3))
    with pytest.raises(InputError, match=r"\(model\.logger: 'a' -> 'b', model\.prune: 0\.0 -> 0\.5\)"):
        learn(tmp_path, config={"model": {"prune": 0.5, "logger": "b"}, "prune": {"after": 1}, "logger": "b"})


@pytest.mark.parametrize("name", ["er", "ewc+er"])
def test_a_stream_that_grew_trains_its_new_tasks_only(name: str, tmp_path: Path):
    tasks = stream(n_classes=6)
    _, whole = learn(tmp_path / "whole", name, stream=tasks)
    first = Stream(tasks.name, tasks.scenario, tasks[:1], tasks.class_names[:2])
    events, _ = learn(tmp_path / "grown", name, stream=first)
    assert epochs(events) == 2
    events, _ = learn(tmp_path / "grown", name, stream=tasks, limit_tasks=2, kill_at=("batch end", 3))
    events, results = learn(tmp_path / "grown", name, stream=tasks, limit_tasks=2)
    assert events[0][2] == 2
    assert results["accuracy_matrix"][2] == [None] * 3
    events, results = learn(tmp_path / "grown", name, stream=tasks)
    assert epochs(events) == 2
    assert results["accuracy_matrix"] == whole["accuracy_matrix"]
    grown, expected = contents(tmp_path / "grown"), contents(tmp_path / "whole")
    del grown["progress"]["rows"], expected["progress"]["rows"]  # of other lengths; the matrix has been compared
    assert differences(grown, expected) == []


def test_joint_training_on_more_tasks_begins_anew(tmp_path: Path):
    tasks = stream(n_classes=6)
    _, whole = learn(tmp_path / "whole", "naive", stream=tasks, training_data="all")
    learn(tmp_path / "grown", "naive", stream=tasks, training_data="all", limit_tasks=2)
    _, grown = learn(tmp_path / "grown", "naive", stream=tasks, training_data="all")
    assert without_times(grown) == without_times(whole)
    assert differences(contents(tmp_path / "grown"), contents(tmp_path / "whole")) == []


def test_a_stream_that_shrank_or_changed_is_refused(tmp_path: Path):
    tasks = stream(n_classes=6)
    learn(tmp_path, "naive", stream=tasks, limit_tasks=2)
    with pytest.raises(InputError, match="limit_tasks: 2 -> 1"):
        learn(tmp_path, "naive", stream=tasks, limit_tasks=1)
    with pytest.raises(InputError, match="task 0 of the stream is not the one that was learnt"):
        learn(tmp_path, "naive", stream=stream(n_classes=6, per_class=11), limit_tasks=3)


def test_stale_fit_checkpoints_are_ignored(tmp_path: Path):
    learn(tmp_path / "other", "naive", kill_at=("batch end", 4), module=module(seed=1))
    stale = next((tmp_path / "other" / "checkpoints").glob("fit-*.ckpt"))
    _, whole = learn(tmp_path / "whole", "naive")
    # of a run that left no progress file, and of a task that is done
    for name in (stale.name, "fit-task0000-stage1.ckpt", "fit-task0001-stage1.ckpt"):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(stale, folder / "checkpoints" / name)
        events, results = learn(folder, "naive")
        assert epochs(events) == 4
        assert without_times(results) == without_times(whole)
        assert list(folder.rglob("*fit-*")) == []


def test_another_model_gives_one_line(tmp_path: Path):
    class Wide(torch.nn.Sequential):
        feature_dim = 9

        def __init__(self) -> None:
            super().__init__(torch.nn.Flatten(), torch.nn.Linear(16, 9))

    from lightning_cl import FineTuningModule

    learn(tmp_path, kill_at=("batch end", 4))
    with pytest.raises(InputError, match=r"does not fit the model .*HINT: resume=never") as error:
        learn(tmp_path, module=FineTuningModule(Wide(), input_shape=(1, 4, 4)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kill_at", [("batch end", 3), ("batch end", 12)])
@pytest.mark.parametrize(
    "settings",
    [
        {"training_data": "seen"},
        {"training_data": "seen", "reinitialize": True, "optimizer_state": "keep"},
        {"training_data": "all"},
    ],
    ids=["cumulative", "from_scratch", "joint"],
)
def test_bounds_resume_too(settings: dict[str, Any], kill_at: Any, tmp_path: Path):
    _, whole = learn(tmp_path / "whole", "naive", **settings)
    _, nothing = learn(tmp_path / "run", "naive", kill_at=kill_at, **settings)
    assert nothing is None
    # a user whose module is not seeded comes back with other weights: those that the run began with count
    _, results = learn(tmp_path / "run", "naive", module=module(weights=9), **settings)
    assert without_times(results) == without_times(whole)
    assert differences(contents(tmp_path / "run"), contents(tmp_path / "whole")) == []


def test_callbacks_of_lightning_count_within_a_fit(tmp_path: Path):
    stopping = EarlyStopping("train_loss", patience=1, min_delta=100.0, check_on_train_epoch_end=True)
    events, _ = learn(tmp_path, "naive", callbacks=[stopping], trainer=trainer(max_epochs=9, log_every_n_steps=1))
    ends = [event for event in events if event[0] == "train end"]
    assert len(ends) == 2
    assert ends[0][1:3] == ends[1][1:3] == (2, 8)
    assert stopping.stopped_epoch == 0


def test_hyperparameters_that_are_objects(tmp_path: Path):
    """``save_hyperparameters()`` of a foreign module keeps callables, which ``weights_only=True`` does not read."""

    def changed() -> Any:
        learner = module()
        learner.save_hyperparameters({"make": partial(torch.optim.SGD, lr=0.1), "depth": 3, "nested": {"f": print}})
        return learner

    _, whole = learn(tmp_path / "whole", "ewc+er", module=changed())
    learn(tmp_path / "run", "ewc+er", module=changed(), kill_at=("batch end", 3))
    for file in tmp_path.rglob("*.ckpt"):
        assert load_state(file).get("hyper_parameters", {}).get("depth", 3) == 3
    _, results = learn(tmp_path / "run", "ewc+er", module=changed())
    assert without_times(results) == without_times(whole)
