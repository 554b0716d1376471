"""What a budget lets each fit spend, and what joint would."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_cl import EWC, GDumb, Replay, ShrinkAndPerturb, UniformSampling, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP, FineTuningModule
from lightning_cl.streams import task_incremental
from tests.finetuning.examples import FEW_EPOCHS, module, stream

PER_TASK, BATCH = 40, 10


def learn(model: Any = None, *callbacks: Any, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": BATCH}
    return run_sequence(model or module(), options.pop("tasks", None) or stream(), callbacks, **{**defaults, **options})


def fits(results: dict[str, Any]) -> list[int]:
    return [results["compute"]["stages"].get(str(t), {}).get("fit", 0) for t in range(3)]


def steps(results: dict[str, Any]) -> list[int]:
    return [task["steps"] for task in results["per_task"]]


def trainer(**options: Any) -> Any:
    return partial(Trainer, accelerator="cpu", enable_progress_bar=False, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"trainer": trainer(max_epochs=3, accumulate_grad_batches=3)},
        {"trainer": trainer(max_steps=17), "batch_size": 17},
        {"trainer": trainer(max_epochs=2, limit_train_batches=3)},
        {"batch_size": 35, "drop_last": True},
        {"limit_tasks": 2},
        {"updates_per_batch": 2, "trainer": trainer(max_steps=17)},
        {"tasks": stream(task_incremental), "head": "multi"},
    ],
)
def test_joint_costs_what_the_formula_says(options: dict[str, Any]) -> None:
    model = module(head=options.pop("head", "growing"))
    compute = learn(model, training_data="all", **options)["compute"]
    assert compute["joint"] == compute["total"] > 0
    assert compute["budget"] is None


def test_joint_is_known_to_every_method_and_nothing_is_drawn_for_it() -> None:
    model = module(backbone=torch.nn.Sequential(MLP((8,), hidden=(16,)), torch.nn.Dropout(0.5)))
    before = torch.get_rng_state()
    naive = learn(model)
    assert torch.equal(before, torch.get_rng_state())
    assert naive["compute"]["joint"] == learn(module(), Replay(20))["compute"]["joint"]
    assert 0.8 < naive["compute"]["total"] / naive["compute"]["joint"] < 1


METHODS: dict[str, Any] = {
    "naive": lambda: ([], {}),
    "er": lambda: ([Replay(20)], {}),
    "er separate": lambda: ([Replay(20, mode="separate")], {}),
    "joint": lambda: ([], {"training_data": "all"}),
    "cumulative": lambda: ([], {"training_data": "seen"}),
    "from_scratch": lambda: ([], {"training_data": "seen", "reinitialize": True}),
    "uniform": lambda: ([UniformSampling()], {}),
    "uniform 20": lambda: ([UniformSampling(20)], {}),
    "gdumb": lambda: ([GDumb(20, max_epochs=50)], {"reinitialize": True}),
    "shrink_and_perturb": lambda: ([ShrinkAndPerturb()], {"training_data": "seen"}),
    "ewc": lambda: ([EWC(10.0, n_samples=5)], {}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("budget", [0.3, 1])
def test_no_more_than_the_budget_and_to_a_step(method: str, budget: float) -> None:
    callbacks, options = METHODS[method]()
    compute = learn(module(), *callbacks, budget=budget, trainer=trainer(max_epochs=4), **options)["compute"]
    limit = budget * compute["joint"]
    assert compute["budget"] == budget
    step = BATCH * compute["joint"] / (3 * PER_TASK * 4)
    # replay's first step in a task may be dearer than any before it
    assert compute["total"] <= limit
    if method != "gdumb" and budget < 1:
        assert compute["total"] > limit - (3 if "er" in method or method == "ewc" else 1.01) * step


def test_shares_of_tasks() -> None:
    """40 samples a task, 4 epochs, 10 in a batch: a budget of 1/2 is 24 steps."""
    options: dict[str, Any] = {"budget": 0.5, "trainer": trainer(max_epochs=4)}
    fixed = {"head": "fixed", "class_names": [f"c{i}" for i in range(6)]}  # so that all tasks cost the same
    assert steps(learn(module(**fixed), **options)) == [8, 8, 8]
    assert steps(learn(module(**fixed), training_data="seen", **options)) == [4, 8, 12]
    assert steps(learn(module(**fixed), UniformSampling(), **options)) == [4, 8, 12]
    assert steps(learn(module(**fixed), UniformSampling(20), **options)) == [6, 9, 9]
    assert steps(learn(module(**fixed), training_data="all", **options)) == [0, 0, 24]
    # replay costs twice as much from the second task on
    assert steps(learn(module(**fixed), Replay(20), **options)) == [8, 4, 4]
    # what the first task leaves: it ends by itself after 16 of its 40 steps
    assert steps(learn(module(**fixed), **{**options, "budget": 2.5})) == [16, 16, 16]
    one = learn(module(**fixed), Replay(20), **{**options, "budget": 1.2})
    assert steps(one) == [16, 11, 9]


def test_uniform_goes_on_until_its_share_is_spent_and_others_do_not() -> None:
    fixed = {"head": "fixed", "class_names": [f"c{i}" for i in range(6)]}
    options: dict[str, Any] = {"budget": 2, "trainer": trainer(max_epochs=1)}
    assert steps(learn(module(**fixed), UniformSampling(), **options)) == [4, 8, 12]
    assert steps(learn(module(**fixed), **options)) == [4, 4, 4]
    assert steps(learn(module(**fixed), UniformSampling(), trainer=trainer(max_steps=5))) == [5, 5, 5]


def test_accumulated_batches_are_one_step() -> None:
    fixed = {"head": "fixed", "class_names": [f"c{i}" for i in range(6)]}
    results = learn(module(**fixed), budget=0.5, trainer=trainer(max_epochs=4, accumulate_grad_batches=2))
    assert steps(results) == [4, 4, 4]
    assert results["compute"]["total"] == results["compute"]["joint"] // 2


def test_a_cut_fit_is_validated_and_consolidated() -> None:
    class Notes(Callback):
        seen = 0

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            self.seen += 1

    notes, ewc = Notes(), EWC(10.0, n_samples=5, labels="empirical")
    tasks = stream(validation_fraction=0.25)
    results = learn(module(), ewc, notes, budget=0.6, tasks=tasks, trainer=trainer(max_epochs=3), select="best")
    assert ewc.n_tasks == 3
    assert notes.seen >= 3
    # the last consolidation may cost more per sample than the one before it
    compute = results["compute"]
    assert compute["total"] - compute["stages"]["2"]["consolidate"] <= 0.6 * compute["joint"]


def test_the_schedule_is_not_told() -> None:
    class Rate(Callback):
        rates: list[float] = []

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    model = module(
        optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1)
    )
    learn(model, Rate(), budget=0.25, trainer=trainer(max_epochs=8), limit_tasks=1)
    assert Rate.rates == [pytest.approx(0.01)]  # two of eight epochs


@pytest.mark.parametrize("budget", [0, -1, "x", True, float("nan"), float("inf")])
def test_bad_budgets(budget: Any) -> None:
    with pytest.raises(InputError, match=r"budget=.*; expected a finite number > 0 .*HINT: set budget=0.1"):
        learn(budget=budget)


class NoLoss(FineTuningModule):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) + 0 * self.trainer.global_step


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 0.001}, r"budget=0.001, of which .* are left at task 0, when a step takes .*n_samples"),
        ({"budget": 0.5, "trainer": trainer(max_epochs=-1)}, r"whose compute cannot be measured.*no end of training"),
        ({"budget": 0.5, "trainer": trainer(max_epochs=2, min_epochs=2)}, r"budget=0.5 with min_epochs=2.*HINT"),
        ({"trained_tasks": 0}, r"trained_tasks=0; expected an integer >= 1"),
        ({"trained_tasks": 1, "training_data": "all"}, r"trained_tasks=1 with training_data='all'; expected"),
    ],
)
def test_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        learn(**options)


def test_a_consolidation_that_costs_more_than_is_left() -> None:
    with pytest.raises(InputError, match=r"left at task 1, .*beside what consolidation costs"):
        learn(module(), EWC(10.0), budget=0.1, trainer=trainer(max_epochs=4))


def test_a_module_that_needs_its_trainer_has_no_joint_compute() -> None:
    def model() -> Any:
        return NoLoss(MLP((8,), hidden=(16,)), input_shape=(8,))

    assert learn(model())["compute"]["joint"] is None
    with pytest.raises(InputError, match=r"budget=0.5 for NoLoss, whose compute cannot be measured.*RuntimeError"):
        learn(model(), budget=0.5)


class Weights(Callback):
    def __init__(self) -> None:
        self.ends: list[dict[str, Any]] = []

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.ends.append({name: value.clone() for name, value in pl_module.state_dict().items()})


@pytest.mark.parametrize("builder", [None, task_incremental])
def test_keep_trains_the_first_task_only(builder: Any) -> None:
    tasks = stream(builder) if builder else stream()
    model, weights = module(head="multi" if builder else "growing"), Weights()
    results = learn(model, weights, trained_tasks=1, tasks=tasks)
    assert len(weights.ends) == 1
    now = model.state_dict()
    assert now.keys() == weights.ends[0].keys()
    assert all(torch.equal(value, now[name]) for name, value in weights.ends[0].items())
    matrix = results["accuracy_matrix"]
    assert matrix[0][0] == matrix[1][0] == matrix[2][0] > 0.4
    assert steps(results) == [8, 0, 0]
    if builder:  # untrained heads guess
        assert 0 < matrix[2][1] < 1
    else:  # it cannot name a class that it does not know
        assert matrix[2][1:] == [0, 0]
    assert results["compute"]["total"] == fits(results)[0]
