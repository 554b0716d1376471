"""A task with one class alone has no gradient: no importance, a warning, and the run goes on to its end."""

import logging
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from lightning_cl import EWC, MAS, SI, KroneckerEWC, RWalk, run_sequence
from lightning_cl.callbacks._classifier import has_one_class
from lightning_cl.errors import InputError
from lightning_cl.report.run import Run
from lightning_cl.streams import class_incremental, task_incremental
from tests.command_line import Call, call
from tests.finetuning.examples import blobs, module

__all__ = ["call"]
ONE_EPOCH = partial(Trainer, max_epochs=1, accelerator="cpu", enable_progress_bar=False)
METHODS: dict[str, Any] = {
    "ewc": lambda **options: EWC(10.0, **options),
    "online_ewc": lambda **options: EWC(10.0, variant="online", gamma=0.9, **options),
    "average": lambda **options: EWC(10.0, variant="average", **options),
    "mas": lambda **options: MAS(1.0, **options),
    "si": lambda **options: SI(1.0, **options),
    "rwalk": lambda **options: RWalk(1.0, **options),
    "kfac_ewc": lambda **options: KroneckerEWC(10.0, **options),
}


def learn(callback: Any, builder: Any = class_incremental, **options: Any) -> tuple[Any, dict[str, Any]]:
    learner = module(**({"head": "multi"} if builder is task_incremental else {}))
    tasks = builder(blobs(3, 6), **({"classes_per_task": [1, 1, 1]} | options))
    results = run_sequence(learner, tasks, [callback], trainer=ONE_EPOCH, batch_size=6, progress_bar=False)
    return learner, results


@pytest.mark.parametrize("name", METHODS)
def test_a_stream_of_single_classes_runs_to_its_end(name: str, caplog: pytest.LogCaptureFixture):
    callback = METHODS[name]()
    with caplog.at_level(logging.WARNING):
        _, results = learn(callback)
    said = [record.getMessage() for record in caplog.records if "one class alone" in record.getMessage()]
    # outputs that are not in a softmax have a sensitivity
    assert len(said) == (0 if name == "mas" else 1)
    assert all("importance of task 0 is 0" in line and "HINT: " in line for line in said)
    assert results["status"] == "finished"
    assert callback.importance or callback.blocks, "the later tasks are held"
    assert all(bool(value.isfinite().all()) for value in callback.importance.values())
    assert not Run(results).diverged


@pytest.mark.parametrize("options", [{"lambda_": "auto"}, {"normalize": "max"}, {"apply": "proximal"}])
def test_options_of_a_penalty_meet_zeros(options: dict[str, Any]):
    callback = EWC(options.pop("lambda_", 10.0), **options)
    learner, results = learn(callback)
    assert results["status"] == "finished"
    assert all(bool(p.isfinite().all()) for p in learner.parameters())
    assert callback.strength > 0
    assert any(bool(value.any()) for value in callback.importance.values())


def test_a_later_task_of_one_class_leaves_what_is_held(caplog: pytest.LogCaptureFixture):
    """Two classes, and then one whose logits compete with none."""
    callback = EWC(10.0)
    with caplog.at_level(logging.WARNING):
        learn(callback, task_incremental, classes_per_task=[2, 1])
    assert [f"importance of task {i} is 0" in caplog.text for i in range(2)] == [False, True]
    assert any(bool(value.any()) for value in callback.importance.values())


def test_zero_importance_of_several_classes_stays_an_error():
    class Given(EWC):
        def _new_importance(self, trainer: Any, module: Any, loader: Any) -> dict[str, torch.Tensor]:
            return {name: torch.zeros_like(p) for name, p in module.named_parameters()}

    with pytest.raises(InputError, match="importance that is 0 for every parameter"):
        learn(Given(1.0), classes_per_task=[2, 1])


def test_which_modules_have_one_class():
    learner = module()
    assert not has_one_class(torch.nn.Linear(2, 1))
    learner.learn_classes(["a"], [[0]])
    assert has_one_class(learner)
    learner.learn_classes(["a", "b"], [[0], [1]])
    assert not has_one_class(learner)
    by_task = module(head="multi")
    by_task.learn_classes(["a", "b", "c"], [[0, 1], [2]])
    assert has_one_class(by_task)
    whole = module(head="fixed", class_names=["a", "b"], active_classes="all")
    whole.learn_classes(["a", "b"], [[0]])
    assert not has_one_class(whole)


def test_the_command(call: Call):
    given = ["stream=split_digits", "stream.n_tasks=10", "limit_tasks=2", "method=ewc", "trainer.max_epochs=1"]
    assert call(*given, "reference_methods=[]").code == 0
