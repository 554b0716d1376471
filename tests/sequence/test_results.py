import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_cl import EWC, FreezingSchedule, Replay, metrics, run_sequence
from lightning_cl.errors import InputError
from lightning_cl.functional import summarize_importance
from lightning_cl.sequence.results import build_results
from lightning_cl.streams import domain_incremental, permutation, task_incremental
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, stream

ADAM = partial(torch.optim.Adam, lr=0.02)
TYPES: dict[str, Any] = {
    "schema": int,
    "status": str,
    "error": type(None),
    "stream": str,
    "scenario": str,
    "method": str,
    "seed": int,
    "class_order_seed": (int, type(None)),
    "metric": dict,
    "task_names": list,
    "n_test": list,
    "accuracy_matrix": list,
    "validation_accuracy_matrix": list,
    "random_init_accuracy": list,
    "compute": dict,
    "bytes_kept": int,
    "average_accuracy": float,
    "average_incremental_accuracy": float,
    "forgetting": float,
    "backward_transfer": float,
    "forward_transfer": float,
    "learning_accuracy": float,
    "per_task": list,
    "trainable_parameters": int,
    "method_state_bytes": dict,
    "peak_rss_bytes": int,
    "versions": dict,
    "config_hash": str,
}


def learn(model: Any, tasks: Any, *callbacks: Any, **options: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = {"trainer": FEW_EPOCHS, "progress_bar": False, "batch_size": 10}
    return run_sequence(model, tasks, callbacks, **{**defaults, **options})


def test_schema(tmp_path: Path) -> None:
    returned = learn(
        module(),
        stream(validation_fraction=0.2, class_order_seed=4),
        EWC(10.0),
        Replay(30),
        run_dir=tmp_path,
        method="ewc+er",
        evaluate_random_init=True,
        evaluate_future=True,
        config={"class_order_seed": 4},
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert results == json.loads(json.dumps(returned))
    for key, kind in TYPES.items():
        assert isinstance(results[key], kind), key
    assert (results["schema"], results["status"], results["method"]) == (1, "finished", "ewc+er")
    assert (results["stream"], results["scenario"], results["class_order_seed"]) == ("stream", "class_incremental", 4)
    assert results["metric"] == {"name": "accuracy", "higher_is_better": True}
    assert results["task_names"] == ["task 0", "task 1", "task 2"]
    assert results["n_test"] == [40, 40, 40]
    for name in ("accuracy_matrix", "validation_accuracy_matrix"):
        assert [len(row) for row in results[name]] == [3, 3, 3]
    for t, task in enumerate(results["per_task"]):
        assert (task["task"], task["name"]) == (t, f"task {t}")
        assert len(task["classes"]) == 2
        assert all(task["seconds"][stage] > 0 for stage in ("train", "consolidate", "evaluate"))
        assert task["steps"] == 2 * math.ceil(32 / 10)
    compute = results["compute"]
    assert compute["total"] == sum(n for row in compute["stages"].values() for n in row.values())
    assert all(row["fit"] > 0 and row["consolidate"] > 0 for row in compute["stages"].values())
    assert compute["evaluation"] > 0
    files = list((tmp_path / "checkpoints").glob("task0003-stage0.*.ckpt"))
    assert results["bytes_kept"] == sum(file.stat().st_size for file in files) > 0
    assert results["trainable_parameters"] == 8 * 16 + 16 + 16 * 6 + 6
    # 30 float32 samples of 8 with int64 labels; two tensors for each parameter
    assert results["method_state_bytes"]["ewc"] == 2 * 4 * results["trainable_parameters"]
    assert results["method_state_bytes"]["replay"] >= 30 * (8 * 4 + 8)
    assert results["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (tmp_path / "model.ckpt").is_file()


def test_a_finished_run_says_what_its_importance_looks_like() -> None:
    ewc, running = EWC(10.0), []
    results = learn(module(), stream(), ewc, Replay(30), on_task_end=running.append)
    assert [so_far["importance"] is None for so_far in running] == [True, True, False]
    assert results["importance"] == {"ewc": summarize_importance(ewc.importance)}
    assert json.loads(json.dumps(results["importance"])) == results["importance"]
    assert [row["name"] for row in results["importance"]["ewc"]] == [name for name, _ in module().named_parameters()]
    assert learn(module(), stream(), Replay(30), limit_tasks=1)["importance"] is None


def test_lower_triangle_by_default_and_derived_metrics_are_those_of_torchmetrics() -> None:
    results = learn(module(optimizer=ADAM), stream(), method="naive")
    matrix = results["accuracy_matrix"]
    assert [[value is None for value in row] for row in matrix] == [
        [False, True, True],
        [False, False, True],
        [False, False, False],
    ]
    assert results["random_init_accuracy"] is results["validation_accuracy_matrix"] is None
    assert results["forward_transfer"] is None
    for name in ("AverageAccuracy", "AverageIncrementalAccuracy", "Forgetting", "BackwardTransfer", "LearningAccuracy"):
        metric = getattr(metrics, name)()
        for task, row in enumerate(matrix):
            metric.update(task, row)
        key = "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")
        assert results[key] == pytest.approx(float(metric.compute())), key
    assert results["average_accuracy"] == pytest.approx(sum(matrix[2]) / 3)
    assert results["forgetting"] > 0.2  # nothing is done against it


@pytest.mark.parametrize("scenario", ["class", "task", "domain"])
def test_future_tasks_and_random_init(scenario: str) -> None:
    tasks = {
        "class": lambda: stream(),
        "task": lambda: stream(task_incremental),
        "domain": lambda: domain_incremental(blobs(), 3, transform=permutation(3)),
    }[scenario]()
    head = "multi" if scenario == "task" else "growing"
    model = module(head=head, optimizer=ADAM)
    untrained = module(head=head)
    results = learn(model, tasks, evaluate_future=True, evaluate_random_init=True)
    plain = learn(module(head=head, optimizer=ADAM), tasks)
    assert all(0 <= value <= 1 for row in results["accuracy_matrix"] for value in row)
    # looking ahead changes nothing: not the weights, not the values of tasks already learnt
    for row, (full, lower) in enumerate(zip(results["accuracy_matrix"], plain["accuracy_matrix"], strict=True)):
        assert full[: row + 1] == lower[: row + 1]
    untrained.learn_classes(tasks.class_names, [t.class_indices for t in tasks])
    untrained.eval()
    for task, value in zip(tasks, results["random_init_accuracy"], strict=True):
        x, y, *rest = task.test.batch(torch.arange(len(task.test)))
        assert value == pytest.approx(float((untrained(x, *rest).argmax(1) == y).float().mean()))
    metric = metrics.ForwardTransfer(random_init=results["random_init_accuracy"])
    for task, row in enumerate(results["accuracy_matrix"]):
        metric.update(task, row)
    assert results["forward_transfer"] == pytest.approx(float(metric.compute()))


def test_joint_fills_the_last_row_only() -> None:
    results = learn(module(), stream(), training_data="all", method="joint")
    matrix = results["accuracy_matrix"]
    assert matrix[:2] == [[None] * 3] * 2
    assert None not in matrix[2]
    assert results["average_accuracy"] == pytest.approx(sum(matrix[2]) / 3)
    for key in ("forgetting", "backward_transfer", "average_incremental_accuracy", "learning_accuracy"):
        assert results[key] is None
    assert [task["steps"] for task in results["per_task"]] == [0, 0, 24]
    assert results["per_task"][0]["seconds"] == {"train": None, "consolidate": None, "evaluate": None}


def test_validation_matrix() -> None:
    tasks = stream(validation_fraction=0.25)
    model = module()
    results = learn(model, tasks)
    last = results["validation_accuracy_matrix"][2]
    model.eval()
    for task, value in zip(tasks, last, strict=True):
        x, y = task.validation.batch(torch.arange(len(task.validation)))
        assert value == pytest.approx(float((model(x).argmax(1) == y).float().mean()))
    assert results["validation_accuracy_matrix"][0][1:] == [None, None]


def test_limit_tasks() -> None:
    results = learn(module(), stream(), limit_tasks=2)
    matrix = results["accuracy_matrix"]
    assert results["status"] == "finished"
    assert [value is None for row in matrix for value in row] == [False, True, True, False, False, True, *[True] * 3]
    assert results["average_accuracy"] == pytest.approx(sum(matrix[1][:2]) / 2)
    assert results["forgetting"] == pytest.approx(matrix[0][0] - matrix[1][0])
    joint = learn(module(), stream(), limit_tasks=2, training_data="all")
    assert [value is None for value in joint["accuracy_matrix"][1]] == [False, False, True]
    assert joint["average_accuracy"] is not None


def test_running_results_are_of_the_tasks_so_far(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    on_disk: list[dict[str, Any]] = []

    class Reads(Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            path = tmp_path / "results.json"
            if path.is_file():
                on_disk.append(json.loads(path.read_text()))

    learn(module(), stream(), Reads(), run_dir=tmp_path, on_task_end=seen.append)
    assert [results["status"] for results in seen] == ["running", "running", "finished"]
    assert [results["status"] for results in on_disk] == ["running", "running"]
    first, second = on_disk
    assert first["average_accuracy"] == pytest.approx(first["accuracy_matrix"][0][0])
    assert first["forgetting"] is None
    matrix = second["accuracy_matrix"]
    assert second["average_accuracy"] == pytest.approx((matrix[1][0] + matrix[1][1]) / 2)
    assert second["forgetting"] == pytest.approx(matrix[0][0] - matrix[1][0])


@pytest.mark.parametrize("error", [InputError("x=1", "2", "do"), ArithmeticError("two\nlines")])
def test_a_failure_is_said_until_the_run_goes_on(tmp_path: Path, error: Exception) -> None:
    broken = [True]

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        if broken and logits.shape[1] == 6:
            raise error
        return nn.functional.cross_entropy(logits, y)

    with pytest.raises(type(error)):
        learn(module(loss=loss), stream(), run_dir=tmp_path)
    failed = json.loads((tmp_path / "results.json").read_text())
    assert failed["status"] == "failed"
    assert failed["error"] == (
        "x=1; expected 2. HINT: do" if isinstance(error, InputError) else "ArithmeticError: two lines"
    )
    assert None not in failed["accuracy_matrix"][1][:2]  # the finished tasks are there
    assert failed["average_accuracy"] == pytest.approx(sum(failed["accuracy_matrix"][1][:2]) / 2)
    broken.clear()
    learn(module(loss=loss), stream(), run_dir=tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert (results["status"], results["error"]) == ("finished", None)
    assert results["accuracy_matrix"] == learn(module(loss=loss), stream())["accuracy_matrix"]


def test_a_failure_in_the_first_task_and_of_the_schedule_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches 0 of"):
        learn(module(), stream(), FreezingSchedule("nothing"), run_dir=tmp_path)
    failed = json.loads((tmp_path / "results.json").read_text())
    assert failed["status"] == "failed"
    assert "matches 0 of" in failed["error"]
    assert failed["average_accuracy"] is None


def test_refusing_another_config_leaves_the_results_alone(tmp_path: Path) -> None:
    learn(module(), stream(), run_dir=tmp_path, config={"a": 1})
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(InputError, match="config differs"):
        learn(module(), stream(), run_dir=tmp_path, config={"a": 2})
    assert (tmp_path / "results.json").read_text() == before


class Regression(LightningModule):
    """Logs an error: lower is better."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self.net(batch[0])[:, 0] - batch[1]).square().mean()

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        error = (self.net(batch[0])[:, 0] - batch[1]).square().mean()
        self.log("test_mse", error, batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_forgetting_above_zero_means_worse_where_lower_is_better() -> None:
    results = learn(
        Regression(),
        stream(),
        metric="mse",
        higher_is_better=False,
        evaluate_future=True,
        evaluate_random_init=True,
    )
    r, b = results["accuracy_matrix"], results["random_init_accuracy"]
    assert results["metric"] == {"name": "mse", "higher_is_better": False}
    forgetting = [r[2][0] - min(r[0][0], r[1][0]), r[2][1] - min(r[0][1], r[1][1])]
    assert results["forgetting"] == pytest.approx(sum(forgetting) / 2)
    assert results["backward_transfer"] == pytest.approx(-((r[2][0] - r[0][0]) + (r[2][1] - r[1][1])) / 2)
    assert results["forward_transfer"] == pytest.approx(((b[1] - r[0][1]) + (b[2] - r[1][2])) / 2)
    assert results["average_accuracy"] == pytest.approx(sum(r[2]) / 3)
    assert results["learning_accuracy"] == pytest.approx((r[0][0] + r[1][1] + r[2][2]) / 3)


def test_signs_by_hand() -> None:
    """Errors 1, then 4 on the first task after the second: it became worse by 3."""
    tasks = stream(n_tasks=2)
    settings = SimpleNamespace(
        higher_is_better=False,
        method="m",
        seed=0,
        config={},
        metric="mse",
        run_dir=None,
        limit_tasks=None,
        budget=None,
        trained_tasks=None,
    )
    progress = {
        "rows": {"0": [1.0, 6.0], "1": [4.0, 2.0]},
        "validation_rows": {},
        "random_init": [5.0, 7.0],
        "flops": {},
        "evaluation_flops": 0,
        "continual": [],
        "seconds": {},
        "steps": {},
        "peak_rss": 0,
    }
    from lightning_cl.sequence.state import SequenceState

    state = SequenceState(module(), tasks, [], SimpleNamespace(reinitialize=False, **vars(settings)), progress)
    results = build_results(state, "finished")
    assert (results["forgetting"], results["backward_transfer"], results["forward_transfer"]) == (3.0, -3.0, 1.0)
    assert (results["average_accuracy"], results["learning_accuracy"]) == (3.0, 1.5)


def test_trainable_parameters_do_not_count_what_is_never_thawed(tmp_path: Path) -> None:
    head, backbone = 16 * 6 + 6, 8 * 16 + 16
    assert learn(module(), stream(), FreezingSchedule(until_epoch=None))["trainable_parameters"] == head
    assert learn(module(), stream(), FreezingSchedule(until_epoch=1))["trainable_parameters"] == head + backbone
