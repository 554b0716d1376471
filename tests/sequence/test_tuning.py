"""Searches before the first task, and early stopping, in real sequences."""

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl import InputError, run_sequence
from lightning_cl.finetuning.learning_rate import set_learning_rate
from lightning_cl.report.page import write_report
from lightning_cl.sequence import tuning
from lightning_cl.streams import Stream, TensorData
from lightning_cl.streams.task import Task
from tests.callbacks.ewc_examples import Net
from tests.resume.helpers import Recorder, contents, differences, learn, module, trainer, without_times

SEARCH = {"lr_find": True, "lr": {"num_training": 30}}


def learnable(tasks: int = 2, n: int = 48) -> Stream:
    """Two classes told apart by a pixel, and validation data."""
    source, made = torch.Generator().manual_seed(0), []
    for task in range(tasks):
        parts = []
        for _ in range(3):
            x = torch.randn(n, 1, 4, 4, generator=source)
            parts.append(TensorData(x, (x[:, 0, 0, task] > 0).long()))
        made.append(Task(task, f"domain {task}", ("a", "b"), (0, 1), *parts))
    return Stream("domains", "domain_incremental", made, ["a", "b"])


def run(folder: Path | None, **options: Any) -> Any:
    return learn(folder, "naive", **{"stream": learnable(), "module": module(optimizer=None), **options})


def sgd(lr: float = 0.02) -> Any:
    return partial(torch.optim.SGD, lr=lr, momentum=0.9)


@pytest.mark.parametrize("optimizer", [None, sgd()])
def test_the_rate_that_was_found_given_by_hand_is_the_same_run(optimizer: Any, tmp_path: Path):
    events, results = run(tmp_path / "tuned", module=module(optimizer=optimizer), tune=SEARCH)
    found = results["tuned"]
    assert 1e-8 <= found["lr"] <= 1
    assert len(found["lr_curve"]["lr"]) == len(found["lr_curve"]["loss"]) <= 30
    by_hand = sgd(found["lr"]) if optimizer else partial(torch.optim.Adam, lr=found["lr"])
    events_by_hand, results_by_hand = run(tmp_path / "hand", module=module(optimizer=by_hand))
    assert events == events_by_hand
    assert events[0][3] == found["lr"]
    tuned, hand = contents(tmp_path / "tuned"), contents(tmp_path / "hand")
    del tuned["progress"]["tuned"]
    assert differences(tuned, hand) == []
    assert results["accuracy_matrix"] == results_by_hand["accuracy_matrix"]
    assert results_by_hand["tuned"] is None
    assert run(None, module=module(optimizer=optimizer))[0] != events


def test_the_figure_is_in_the_run_folder_and_in_the_report(tmp_path: Path):
    run(tmp_path, tune=SEARCH, trainer=trainer(max_epochs=1))
    plot = tmp_path / "plots" / "learning_rate.png"
    assert plot.read_bytes().startswith(b"\x89PNG")
    plot.unlink()
    write_report(tmp_path)
    assert plot.is_file()
    assert "Learning rate" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob("**/.lr_find*"))


@pytest.mark.parametrize("kill_at", [("batch start", 1), ("batch end", 7)])
def test_a_killed_run_uses_what_was_found_and_does_not_search_again(
    kill_at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tune = {**SEARCH, "scale_batch_size": "power", "batch_size": {"max_val": 12, "init_val": 3}}
    _, results = run(tmp_path / "whole", tune=tune)
    assert results["tuned"]["batch_size"] == 12
    assert results["per_task"][0]["steps"] == 2 * 48 // 12
    assert run(tmp_path / "killed", tune=tune, kill_at=kill_at)[1] is None
    monkeypatch.setattr(tuning, "_tuner", None)
    _, again = run(tmp_path / "killed", tune=tune)
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []
    assert without_times(again)["tuned"] == results["tuned"]
    assert run(tmp_path / "killed", tune=tune)[0] == []


def test_the_batch_size_that_was_found_given_by_hand_is_the_same_run():
    tune = {"scale_batch_size": "binsearch", "batch_size": {"max_val": 16}}
    events, results = run(None, tune=tune)
    found = results["tuned"]["batch_size"]
    assert 2 <= found <= 16
    assert run(None, batch_size=found)[0] == events
    assert run(None)[0] != events


def test_random_numbers_and_the_module_are_as_before():
    state = torch.get_rng_state()
    learner = module(optimizer=None)
    before = copy.deepcopy(learner.state_dict())

    class Stops(Exception):
        pass

    class First(Recorder):
        def setup(self, *_: Any, **__: Any) -> None:
            raise Stops

    with pytest.raises(Stops):
        run_sequence(learner, learnable(), [First()], trainer=trainer(), tune=SEARCH, progress_bar=False, batch_size=6)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    assert learner.class_names == []


def test_each_task_from_the_initial_weights_uses_it_too():
    events, results = run(None, tune=SEARCH, reinitialize=True)
    assert {event[3] for event in events} == {results["tuned"]["lr"]}


@pytest.mark.parametrize("name", ["lr", "learning_rate"])
def test_modules_that_are_not_ours(name: str):
    net = Net()
    del net.lr
    setattr(net, name, 0.5)
    set_learning_rate(net, 0.25)
    assert getattr(net, name) == 0.25
    with_hparams = nn.Module()
    with_hparams.hparams = {name: 0.5}  # type: ignore[assignment]
    set_learning_rate(with_hparams, 0.25)
    assert with_hparams.hparams == {name: 0.25}


def test_a_module_without_a_rate_is_refused():
    with pytest.raises(InputError, match=r"Module without a learning rate; expected an attribute lr or learning_rate"):
        set_learning_rate(nn.Module(), 0.1)
    with pytest.raises(
        InputError, match=r"takes no lr; expected a learning rate that can be set. HINT: give functools"
    ):
        run(None, module=module(optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1)), tune=SEARCH)


def test_no_rate_found_is_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"tune.lr_find found no learning rate in 8 steps .*HINT: tune.lr="):
        run(None, tune={"lr_find": True, "lr": {"num_training": 8}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"tune": {"lr": {"steps": 3}}},
            r"tune.lr={'steps': 3}; expected options of Tuner.lr_find: early_stop_threshold",
        ),
        ({"tune": {"batch_size": {"mode": "power"}}}, r"expected options of Tuner.scale_batch_size: init_val, margin"),
        ({"tune": {"find": True}}, r"tune={'find': True}; expected null, or some of lr_find, scale_batch_size"),
        ({"tune": {"lr_find": "yes"}}, r"tune.lr_find='yes'; expected true or false. HINT: tune.lr_find=true"),
        (
            {"tune": {"scale_batch_size": "double"}},
            r"tune.scale_batch_size='double'; expected null, power or binsearch",
        ),
        ({"early_stopping": 3}, r"early_stopping=3; expected null, or some of patience, monitor.* HINT: {patience: 3}"),
        ({"early_stopping": {"patience": 0}}, r"early_stopping.patience=0; expected an integer >= 1, or null for none"),
        ({"early_stopping": {"patience": 1, "mode": "up"}}, r"early_stopping.mode='up'; expected 'max' or 'min'"),
        ({"early_stopping": {"wait": 1}}, r"early_stopping={'wait': 1}; expected null, or some of patience"),
    ],
)
def test_options_that_are_not_known_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        run(None, **options)


# early stopping -----------------------------------------------------------------------------------------------------

WORSE = {"patience": 2, "monitor": "val_loss", "mode": "max", "min_delta": 10.0}  # never better by so much


def epochs(results: dict[str, Any]) -> list[int]:
    return [task["steps"] // 8 for task in results["per_task"]]


def test_each_task_counts_anew(tmp_path: Path):
    _, results = run(tmp_path, early_stopping=WORSE, trainer=trainer(max_epochs=6))
    assert epochs(results) == [3, 3], "the first epoch is the best, then 2 that are not better"
    assert epochs(run(None, early_stopping={**WORSE, "patience": None}, trainer=trainer(max_epochs=4))[1]) == [4, 4]
    # the run's own monitor
    short = run(
        None, early_stopping={"patience": 1, "min_delta": 2.0}, monitor="val_accuracy", trainer=trainer(max_epochs=4)
    )
    assert epochs(short[1]) == [2, 2]


@pytest.mark.parametrize("kill_at", [("epoch start", 16), ("batch end", 21), ("train end", 24)])
def test_a_killed_run_goes_on_with_its_count(kill_at: Any, tmp_path: Path):
    options = {"early_stopping": WORSE, "trainer": trainer(max_epochs=6), "select": "best"}
    _, results = run(tmp_path / "whole", **options)
    assert epochs(results) == [3, 3]
    assert run(tmp_path / "killed", kill_at=kill_at, **options)[1] is None
    _, again = run(tmp_path / "killed", **options)
    assert epochs(again) == [3, 3]
    assert differences(contents(tmp_path / "killed"), contents(tmp_path / "whole")) == []
    saved = json.loads((tmp_path / "killed" / "results.json").read_text())
    assert saved["accuracy_matrix"] == results["accuracy_matrix"]


def test_what_cannot_be_watched_is_refused():
    plain = learnable()
    plain.tasks = [Task(t.id, t.name, t.classes, t.class_indices, t.train, None, t.test) for t in plain.tasks]
    with pytest.raises(InputError, match=r"early_stopping by 'val_accuracy' without validation data; .* HINT: set val"):
        run(None, stream=plain, early_stopping={"patience": 1})
    with pytest.raises(
        InputError, match=r"early_stopping .*; expected one of \[.*'val_loss'\]. HINT: set early_stopping"
    ):
        run(None, early_stopping={"patience": 1, "monitor": "val_f1"})
