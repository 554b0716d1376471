"""The stage behind the fit: its data, its rates, what rests in it, and what it refuses."""

import re
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lightning_cl import EEIL, EWC, BalancedFineTuning, FreezingSchedule, Replay
from lightning_cl.errors import InputError
from lightning_cl.streams import TaskDataModule
from tests.callbacks.teacher_examples import COSINE, learn
from tests.finetuning.examples import module, stream, trainer


class Watch(Callback):
    """For each fit: labels of its first epoch, learning rates of its steps, who was there, weights at its ends."""

    def __init__(self) -> None:
        self.fits: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        names = [type(c).__name__ for c in trainer.callbacks]
        weights = {n: v.clone() for n, v in pl_module.state_dict().items()}
        self.fits.append({"labels": [], "rates": [], "callbacks": names, "start": weights})

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0:
            self.fits[-1]["labels"] += batch[1].tolist()
        self.fits[-1]["rates"].append(trainer.optimizers[0].param_groups[0]["lr"])
        self.fits[-1]["training"] = pl_module.backbone.training

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.fits[-1]["end"] = {n: v.clone() for n, v in pl_module.state_dict().items()}


def run(*callbacks: Any, **options: Any) -> tuple[list[dict[str, Any]], dict[str, Any], Any]:
    watch, model = Watch(), options.pop("model", None) or module(**COSINE)
    results = learn(model, *callbacks, watch, **options)
    return watch.fits, results, model


def counts(labels: list[int]) -> dict[int, int]:
    return {label: labels.count(label) for label in sorted(set(labels))}


def test_it_trains_on_as_many_old_samples_as_new_ones_of_each_class():
    fits, results, _ = run(Replay(12, policy="class_balanced"), BalancedFineTuning(3))
    assert len(fits) == 5, "three tasks, and no second stage in the first"
    # 12 of 2 classes, then 12 of 4
    assert counts(fits[2]["labels"]) == {0: 6, 1: 6, 2: 6, 3: 6}
    assert counts(fits[4]["labels"]) == {0: 3, 1: 3, 2: 3, 3: 3, 4: 3, 5: 3}
    assert [len(f["rates"]) for f in fits] == [8, 8, 9, 8, 6]
    assert [f["rates"][0] for f in fits] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-3, 1e-4])
    assert [task["steps"] for task in results["per_task"]] == [8, 17, 14]
    assert results["per_task"][1]["seconds"]["balanced_fine_tuning"] > 0
    stages = results["compute"]["stages"]
    assert list(stages["1"]) == ["fit", "balanced_fine_tuning", "consolidate"]
    assert 0 < stages["1"]["balanced_fine_tuning"] < stages["1"]["fit"]
    assert "balanced_fine_tuning" not in stages["0"]


def test_methods_rest_in_it_but_those_that_ask_for_it():
    fits, _, _ = run(EWC(1.0), EEIL(12), BalancedFineTuning(1))
    assert {"EWC", "EEIL", "BalancedFineTuning"} <= set(fits[1]["callbacks"])
    assert "EEIL" in fits[2]["callbacks"]
    assert not {"EWC", "BalancedFineTuning"} & set(fits[2]["callbacks"])
    assert counts(fits[2]["labels"]) == {0: 6, 1: 6, 2: 6, 3: 6}, "EEIL mixes nothing in"


def test_consolidation_comes_after_it():
    eeil = EEIL(12)
    fits, _, model = run(eeil, BalancedFineTuning(1), limit_tasks=2)
    assert torch.equal(eeil.teacher.tensors["head.weight"], model.head.weight)
    assert not torch.equal(fits[1]["end"]["head.weight"], model.head.weight)


def test_eeil_distils_the_task_just_learnt_too():
    """From the model as the fit left it: at the first step that has no gradient, whatever lambda is."""

    def weights(lambda_: float) -> tuple[Tensor, Tensor]:
        fits, _, _ = run(EEIL(12, lambda_=lambda_), BalancedFineTuning(20, lr_scale=5.0), limit_tasks=2)
        start, end = fits[2]["start"], fits[2]["end"]
        x, y = stream()[1].train.batch(torch.arange(40))
        model = module(**COSINE, class_names=[f"c{i}" for i in range(4)])
        outputs = []
        for state in (start, end):
            model.load_state_dict(state)
            outputs.append((model.head(model.backbone(x))[:, 2:] / 2).log_softmax(1).detach())
        return (outputs[0].exp() * (outputs[0] - outputs[1])).sum(1).mean(), y

    # the outputs on the new classes drift less under a strong distillation
    assert float(weights(50.0)[0]) < 0.5 * float(weights(0.0)[0])


@pytest.mark.parametrize("scheduled", [False, True])
def test_rates_and_schedules_are_scaled(scheduled: bool):
    options = {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)} if scheduled else {}
    model = module(optimizer=lambda p: torch.optim.SGD(p, 0.4), **options)
    fits, _, _ = run(
        Replay(12, policy="class_balanced"), BalancedFineTuning(2, lr_scale=0.25), model=model, limit_tasks=2
    )
    later = 0.05 if scheduled else 0.1
    assert fits[2]["rates"] == pytest.approx([0.1] * 3 + [later] * 3)


def test_the_head_alone():
    model = module(**COSINE)
    schedule = FreezingSchedule(until_epoch=1)
    fits, _, _ = run(Replay(12), BalancedFineTuning(2, tune="head"), schedule, model=model, limit_tasks=2)
    changed = {n for n, v in fits[2]["end"].items() if not torch.equal(v, fits[2]["start"][n])}
    assert changed == {"head.weight", "head.eta"}
    assert not fits[2]["training"]
    assert all(p.requires_grad for p in model.parameters())
    assert "FreezingSchedule" not in fits[2]["callbacks"]


CONSTRUCTORS: list[tuple[dict[str, Any], str]] = [
    ({"epochs": 0}, "epochs=0; expected an integer >= 1. HINT:"),
    ({"lr_scale": 0}, "lr_scale=0; expected a finite number > 0. HINT:"),
    ({"tune": "tail"}, "tune='tail'; expected 'all' or 'head'. HINT:"),
]


@pytest.mark.parametrize(("options", "message"), CONSTRUCTORS)
def test_constructor_refuses(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        BalancedFineTuning(**options)


def test_what_cannot_work_is_refused_before_the_first_task():
    with pytest.raises(InputError, match=r"in a Trainer of your own; .* HINT: run_sequence\("):
        trainer(callbacks=[Replay(12), BalancedFineTuning()]).fit(module(), datamodule=TaskDataModule(stream()[0]))
    for callbacks, names in (([], r"\[\]"), ([Replay(12, name="a"), Replay(12, name="b")], r"\['a', 'b'\]")):
        with pytest.raises(InputError, match=rf"with the memories {names}; .* HINT: method=\[er,"):
            learn(module(), *callbacks, BalancedFineTuning())
    with pytest.raises(InputError, match=r"a memory with fill='step'; .* HINT: set fill='consolidate'"):
        learn(module(), Replay(12, fill="step"), BalancedFineTuning())
    with pytest.raises(InputError, match=r"with training_data='seen'; .* HINT: leave one"):
        learn(module(), Replay(12), BalancedFineTuning(), training_data="seen")
    learn(module(), Replay(12, name="a"), Replay(12, name="b"), BalancedFineTuning(1, memory="b"), limit_tasks=2)


def test_the_head_alone_needs_a_head():
    stage = BalancedFineTuning(tune="head")
    stage.stages()
    with pytest.raises(InputError, match=r"tune='head' on Linear; expected a module with backbone and head. HINT:"):
        stage.setup(trainer(callbacks=[Replay(12)]), torch.nn.Linear(1, 1), "fit")
