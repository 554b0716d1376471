"""The tasks of a stream are known: what a method cannot learn to the end is refused before its first task."""

from typing import Any

import pytest
from lightning.pytorch import Callback

from lightning_cl import LUCIR, WA, BiC, ICaRL, PODNet, Replay, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.streams import class_incremental, data_incremental, domain_incremental, task_incremental
from lightning_cl.streams.datamodule import TaskDataModule
from tests.command_line import QUICK, Call, call
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, trainer

__all__ = ["call"]
METHODS: dict[str, Any] = {
    "icarl": lambda: [ICaRL(24)],
    "bic": lambda: [BiC(24, validation_fraction=0.5)],
    "wa": lambda: [Replay(24), WA()],
    "lucir": lambda: [LUCIR(24)],
    "podnet": lambda: [PODNet(24)],
}


class NoFit(Callback):
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        raise AssertionError("something is trained")


def run(callbacks: Any, builder: Any, **settings: Any) -> dict[str, Any]:
    tasks = builder(blobs(), 2)
    cosine = any(isinstance(callback, LUCIR | PODNet) for callback in callbacks)
    learner = module(head_layer="cosine" if cosine else "linear")
    return run_sequence(learner, tasks, callbacks, trainer=FEW_EPOCHS, progress_bar=False, **settings)


@pytest.mark.parametrize("builder", [domain_incremental, data_incremental])
@pytest.mark.parametrize("name", METHODS)
def test_a_scenario_without_new_classes_is_refused_before_training(name: str, builder: Any):
    callback = METHODS[name]()[-1]
    message = rf"'task 1' without new classes for {type(callback).__name__}; .* HINT: set stream.scenario=class_incr"
    with pytest.raises(InputError, match=message):
        run([*METHODS[name](), NoFit()], builder)


@pytest.mark.parametrize("name", METHODS)
def test_a_trainer_of_ones_own_knows_one_task_at_a_time(name: str):
    first, second = domain_incremental(blobs(), 2)
    callbacks = [callback for callback in METHODS[name]() if not isinstance(callback, Replay)]
    learner = module(head_layer="cosine" if name in ("lucir", "podnet") else "linear")
    trainer(max_epochs=1, callbacks=callbacks).fit(learner, TaskDataModule(first, batch_size=20))
    with pytest.raises(InputError, match=r"a task without (new classes for|a new class).*HINT: "):
        trainer(max_epochs=1, callbacks=callbacks).fit(learner, TaskDataModule(second, batch_size=20))


@pytest.mark.parametrize("builder", [class_incremental, task_incremental])
@pytest.mark.parametrize("name", METHODS)
def test_new_classes_are_taken(name: str, builder: Any):
    # it comes as far as the first fit
    with pytest.raises(AssertionError, match="something is trained"):
        run([NoFit(), *METHODS[name]()], builder)


@pytest.mark.parametrize("settings", [{"limit_tasks": 1}, {"trained_tasks": 1}, {"training_data": "all"}])
def test_what_is_trained_only_once_is_taken(settings: dict[str, Any]):
    assert run(METHODS["icarl"](), domain_incremental, **settings)["status"] == "finished"


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: ICaRL(5), "memory_size=5 of ICaRL for 6 classes; expected an exemplar for every class"),
        (lambda: BiC(10, validation_fraction=0.5), "5 samples held out by BiC for 6 classes"),
    ],
)
def test_too_few_places_for_all_classes_are_refused_before_training(callback: Any, message: str):
    with pytest.raises(InputError, match=message):
        run([callback(), NoFit()], class_incremental)
    with pytest.raises(AssertionError, match="something is trained"):
        run([callback(), NoFit()], class_incremental, limit_tasks=1)


@pytest.mark.parametrize("method", ["icarl", "bic", "wa", "podnet", "lucir"])
def test_the_command(call: Call, method: str):
    found = call("stream=split_digits", "stream.scenario=domain_incremental", f"method={method}", *QUICK)
    assert "'task 1' without new classes for " in found.error
    assert "learning task 0" not in found.out + found.err
