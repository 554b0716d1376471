import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lightning_cl import Replay, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.metrics import MinAccuracy
from lightning_cl.streams import task_incremental
from tests.callbacks.freezing_examples import Net
from tests.finetuning.examples import FEW_EPOCHS, module, stream

EVERY = 3


class Keep(Callback):
    """A copy of the module after every third optimizer step."""

    def __init__(self) -> None:
        self.models: list[Any] = []
        self.where: list[tuple[int, int]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step % EVERY == 0:
            self.where.append((len(pl_module.tasks), trainer.global_step))
            self.models.append(copy.deepcopy((pl_module.state_dict(), pl_module.tasks, pl_module.class_names)))


def learn(model: Any, tasks: Any, *callbacks: Any, **options: Any) -> dict[str, Any]:
    trainer = options.pop("trainer", FEW_EPOCHS)
    return run_sequence(model, tasks, callbacks, trainer=trainer, progress_bar=False, batch_size=10, **options)


@pytest.mark.parametrize("head", ["growing", "multi"])
def test_values_equal_an_independent_evaluation(head: str) -> None:
    tasks = stream(task_incremental) if head == "multi" else stream()
    keep = Keep()
    results = learn(module(head=head), tasks, keep, evaluate_every_n_steps=EVERY, eval_batch_size=7)
    rows = results["continual_evaluation"]
    assert [(row["task"] + 1, row["step"] - 8 * row["task"]) for row in rows] == keep.where
    assert [row["step"] for row in rows] == [3, 6, 11, 14, 19, 22]  # eight steps a task
    for row, (weights, seen, names) in zip(rows, keep.models, strict=True):
        model = module(head=head, class_names=names, tasks=seen)
        model.load_state_dict(weights)
        model.eval()
        for task, value in zip(tasks[: row["task"] + 1], row["accuracy"], strict=True):
            x, y, *rest = task.test.batch(torch.arange(len(task.test)))
            logits = model.head(model.backbone(x))
            known = range(2 * task.id, 2 * task.id + 2) if head == "multi" else range(len(names))
            chosen = torch.tensor([max(known, key=lambda c, row=line: float(row[c])) for line in logits])
            assert value == pytest.approx(float((chosen == y).double().mean()))
            assert len(rest) == (head == "multi")


def test_min_accuracy_by_hand() -> None:
    results = learn(module(), stream(), evaluate_every_n_steps=1)
    rows = results["continual_evaluation"]
    worst = [min(row["accuracy"][t] for row in rows if row["task"] > t) for t in range(2)]
    assert results["min_accuracy"] == pytest.approx(sum(worst) / 2)
    metric = MinAccuracy()
    for row in rows:
        metric.update(row["task"], row["accuracy"])
    assert results["min_accuracy"] == pytest.approx(float(metric.compute()))
    assert learn(module(), stream(), limit_tasks=1)["min_accuracy"] is None


def test_training_is_not_influenced() -> None:
    torch.manual_seed(0)
    models = [module(), module()]
    plain = learn(models[0], stream(), Replay(20), seed=3)
    watched = learn(models[1], stream(), Replay(20), seed=3, evaluate_every_n_steps=1)
    for name, value in models[0].state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])
    assert plain["accuracy_matrix"] == watched["accuracy_matrix"]
    assert plain["compute"]["total"] == watched["compute"]["total"]
    assert watched["compute"]["evaluation"] > 5 * plain["compute"]["evaluation"]


def test_steps_are_optimizer_steps_and_none_comes_before_the_first() -> None:
    def accumulating(**keywords: Any) -> Any:
        return FEW_EPOCHS(**keywords, accumulate_grad_batches=2)

    results = learn(module(), stream(), evaluate_every_n_steps=2, limit_tasks=1, trainer=accumulating)
    assert [row["step"] for row in results["continual_evaluation"]] == [2, 4]


def test_works_in_half_precision() -> None:
    def half(**keywords: Any) -> Any:
        return FEW_EPOCHS(**keywords, precision="bf16-true")

    rows = learn(module(), stream(), evaluate_every_n_steps=4, limit_tasks=1, trainer=half)["continual_evaluation"]
    assert [row["step"] for row in rows] == [4, 8]


def test_a_killed_run_has_the_same_values(tmp_path: Path) -> None:
    class Dies(Callback):
        def __init__(self) -> None:
            self.at = 13

        def on_train_batch_end(self, *args: Any) -> None:
            self.at -= 1
            if self.at == 0:
                raise KeyboardInterrupt

    whole = learn(module(), stream(), Replay(20), evaluate_every_n_steps=1)
    options: dict[str, Any] = {"run_dir": tmp_path, "evaluate_every_n_steps": 1, "checkpoint_every_n_steps": 2}

    def trainer(**keywords: Any) -> Any:
        return FEW_EPOCHS(**{**keywords, "callbacks": [*keywords["callbacks"], dies]})

    dies = Dies()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        learn(module(), stream(), Replay(20), trainer=trainer, **options)
    again = learn(module(), stream(), Replay(20), **options)
    assert again["continual_evaluation"] == whole["continual_evaluation"]
    assert again["compute"] == whole["compute"]


def test_other_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"evaluate_every_n_steps with Net; expected a FineTuningModule"):
        learn(Net(), stream(), evaluate_every_n_steps=1)
