"""What each method trains on, from which weights, and what freezing does to the others."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import EWC, FreezingSchedule, Replay, run_sequence
from lightning_cl.finetuning import MLP
from lightning_cl.sequence import stages
from lightning_cl.streams import class_incremental, digits
from tests.finetuning.examples import FEW_EPOCHS, module, stream

METHODS: dict[str, dict[str, Any]] = {
    "naive": {},
    "cumulative": {"training_data": "seen"},
    "from_scratch": {"training_data": "seen", "reinitialize": True},
    "joint": {"training_data": "all"},
}


class Watch(Callback):
    """Samples of the first epoch of each fit, and the weights at its start."""

    def __init__(self) -> None:
        self.samples: list[set[float]] = []
        self.batches: list[int] = []
        self.start: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.start.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        self.samples.append(set())
        self.batches.append(0)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self.samples[-1].update(batch[0][:, 0].tolist())
            self.batches[-1] += len(batch[0])


def learn(model: Any, *callbacks: Any, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10}
    return run_sequence(model, options.pop("tasks", None) or stream(), callbacks, **{**defaults, **options})


def of_task(t: int) -> set[float]:
    data = stream()[t].train
    return set(data.batch(torch.arange(len(data)))[0][:, 0].tolist())


@pytest.mark.parametrize("method", METHODS)
def test_sees_its_data_once_an_epoch(method: str) -> None:
    watch = Watch()
    learn(module(), watch, **METHODS[method])
    tasks = [of_task(t) for t in range(3)]
    expected = {
        "naive": tasks,
        "cumulative": [tasks[0], tasks[0] | tasks[1], tasks[0] | tasks[1] | tasks[2]],
        "from_scratch": [tasks[0], tasks[0] | tasks[1], tasks[0] | tasks[1] | tasks[2]],
        "joint": [tasks[0] | tasks[1] | tasks[2]],
    }[method]
    assert watch.samples == expected
    assert watch.batches == [len(samples) for samples in expected]


def test_only_from_scratch_starts_from_the_initial_weights() -> None:
    initial = module()
    initial.learn_classes([f"c{i}" for i in range(6)], [[0, 1], [2, 3], [4, 5]])
    for method in ("naive", "cumulative", "from_scratch"):
        watch, model = Watch(), module()
        learn(model, watch, **METHODS[method])
        for t, start in enumerate(watch.start):
            same = [torch.equal(value, initial.state_dict()[name][: len(value)]) for name, value in start.items()]
            assert all(same) if t == 0 or method == "from_scratch" else not any(same), (method, t)


def test_from_scratch_ends_as_one_fit_on_the_same_data_from_the_same_weights() -> None:
    class Stops(Callback):
        """Runs only the last task's fit."""

        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            if len(pl_module.tasks) < 3:
                trainer.fit_loop.max_epochs = 0

    results = learn(module(), **METHODS["from_scratch"])
    single = learn(module(), Stops(), **METHODS["from_scratch"])
    assert results["accuracy_matrix"][2] == single["accuracy_matrix"][2]
    assert results["accuracy_matrix"][1] != single["accuracy_matrix"][1]


@pytest.mark.parametrize("callback", [lambda: EWC(100.0), lambda: Replay(20), lambda: FreezingSchedule()])
def test_each_callback_makes_a_difference(callback: Any) -> None:
    plain, other = module(), module()
    learn(plain)
    learn(other, callback())
    assert not torch.equal(plain.backbone.layers[1].weight, other.backbone.layers[1].weight)


def test_lambda_zero_and_an_untouched_first_task_make_none() -> None:
    plain = module()
    learn(plain)
    for callback, tasks in ((EWC(0.0), 3), (EWC(100.0), 1), (Replay(20), 1)):
        other = module()
        learn(other, callback, limit_tasks=tasks)
        same = module()
        learn(same, limit_tasks=tasks)
        for name, value in same.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])


def test_freezing_replay_and_ewc_together() -> None:
    model = module()
    watch = Watch()
    results = learn(model, FreezingSchedule(until_epoch=1), Replay(20), EWC(10.0), watch)
    assert results["method_state_bytes"].keys() == {"replay", "ewc"}
    assert watch.batches == [40, 80, 80]
    assert all(p.requires_grad for p in model.parameters())
    frozen = module()
    learn(frozen, FreezingSchedule(until_epoch=None), Replay(20), EWC(10.0))
    assert torch.equal(frozen.backbone.layers[1].weight, module().backbone.layers[1].weight)


@pytest.mark.parametrize(("until", "expected"), [(None, 2), (5, 2), (1, 4)])
def test_importance_skips_what_was_never_thawed(until: int | None, expected: int) -> None:
    ewc = EWC(10.0)
    learn(module(), FreezingSchedule(until_epoch=until), ewc)
    assert len(ewc.importance) == expected
    assert ewc.importance["head.weight"].shape == (6, 16)


@pytest.mark.parametrize("until", [None, 1])
def test_killed_before_consolidation_goes_on_with_the_same_importance(
    until: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, model = EWC(10.0), module()
    learn(model, FreezingSchedule(until_epoch=until), whole)
    consolidate = stages.consolidate

    def killed(state: Any, task: Any) -> None:
        if task.id == 1:
            raise KeyboardInterrupt
        consolidate(state, task)

    monkeypatch.setattr(stages, "consolidate", killed)
    with pytest.raises(KeyboardInterrupt):
        learn(module(), FreezingSchedule(until_epoch=until), EWC(10.0), run_dir=tmp_path)
    monkeypatch.undo()
    again, resumed = EWC(10.0), module()
    learn(resumed, FreezingSchedule(until_epoch=until), again, run_dir=tmp_path)
    assert whole.importance.keys() == again.importance.keys()
    for name in whole.importance:
        assert torch.equal(whole.importance[name], again.importance[name])
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])


def learn_digits(*callbacks: Any, **options: Any) -> float:
    from lightning_cl.finetuning import FineTuningModule

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FineTuningModule(MLP((1, 8, 8), hidden=(100,)), input_shape=(1, 8, 8))
    results = run_sequence(
        model,
        class_incremental(digits(), 5),
        callbacks,
        trainer=partial(Trainer, max_epochs=10, accelerator="cpu"),
        batch_size=32,
        progress_bar=False,
        **options,
    )
    return results["average_accuracy"]


def test_replay_on_real_digits() -> None:
    naive = learn_digits()
    replay = learn_digits(Replay(200))
    joint = learn_digits(training_data="all")
    assert naive < 0.25  # the last of five tasks
    assert replay > naive + 0.4
    assert joint >= replay


@pytest.mark.skipif("LIGHTNING_CL_DATA" not in os.environ, reason="needs MNIST: set LIGHTNING_CL_DATA")
def test_replay_on_real_mnist() -> None:
    from lightning_cl.finetuning import FineTuningModule
    from lightning_cl.streams import mnist

    accuracy = {}
    for name, callbacks in (("naive", []), ("er", [Replay(500)])):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = FineTuningModule(MLP((1, 28, 28), hidden=(100,)), input_shape=(1, 28, 28))
        tasks = class_incremental(mnist(os.environ["LIGHTNING_CL_DATA"]), 5)
        results = run_sequence(
            model, tasks, callbacks, trainer=partial(Trainer, max_epochs=1, accelerator="cpu"), progress_bar=False
        )
        accuracy[name] = results["average_accuracy"]
    assert 0.15 < accuracy["naive"] < 0.25
    assert accuracy["er"] > accuracy["naive"] + 0.4
