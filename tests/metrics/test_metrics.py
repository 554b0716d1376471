import math

import pytest
import torch

import lightning_cl.metrics as metrics
from lightning_cl.errors import InputError
from lightning_cl.functional import accuracy_matrix as functional

ROWS = [[0.9, 0.5, 0.4], [0.7, 0.8, 0.6], [0.5, 0.75, 1.0]]
PLAIN = {
    "AverageAccuracy": functional.average_accuracy,
    "AverageIncrementalAccuracy": functional.average_incremental_accuracy,
    "BackwardTransfer": functional.backward_transfer,
    "Forgetting": functional.forgetting,
    "LearningAccuracy": functional.learning_accuracy,
}


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
@pytest.mark.parametrize("name", PLAIN)
def test_follows_the_stream_task_by_task(name):
    metric = getattr(metrics, name)()
    assert metric.compute().isnan()
    for task in range(3):
        metric.update(task, ROWS[task][: task + 1])
        known = [row[: i + 1] + [None] * (task - i) for i, row in enumerate(ROWS[: task + 1])]
        torch.testing.assert_close(metric.compute().item(), PLAIN[name](known), rtol=1e-6, atol=0, equal_nan=True)
    metric.reset()
    assert metric.compute().isnan()


def test_only_the_last_row_as_in_joint():
    values = {}
    for name in PLAIN:
        metric = getattr(metrics, name)()
        metric.update(2, [0.5, 0.6, 0.7])
        values[name] = metric.compute().item()
    assert values.pop("AverageAccuracy") == pytest.approx(0.6)
    assert all(math.isnan(value) for value in values.values())


def test_forward_transfer_takes_as_many_baselines_as_tasks():
    metric = metrics.ForwardTransfer(random_init=[0.1, 0.2, 0.3])
    metric.update(0, ROWS[0])
    metric.update(1, ROWS[1])
    assert metric.compute().item() == pytest.approx(0.3)
    metric.update(2, ROWS[2])
    assert metric.compute().item() == pytest.approx((0.3 + 0.3) / 2)


def test_min_accuracy_keeps_the_worst():
    metric = metrics.MinAccuracy()
    tasks = [0, 1, 1, 2, 2]
    rows = [[0.1], [0.3, 0.0], [0.8, 0.9], [0.6, 0.2, 0.0], [None, 0.7, 0.9]]
    for task, row in zip(tasks, rows, strict=True):
        metric.update(task, row)
    assert metric.compute().item() == pytest.approx((0.3 + 0.2) / 2)
    assert metric.compute().item() == pytest.approx(functional.min_accuracy(tasks, rows))


def test_state_loads_with_weights_only(tmp_path):
    metric = metrics.Forgetting()
    metric.persistent(True)
    metric.update(0, ROWS[0])
    metric.update(1, ROWS[1])
    torch.save(metric.state_dict(), tmp_path / "metric.pt")
    other = metrics.Forgetting()
    other.persistent(True)
    other.load_state_dict(torch.load(tmp_path / "metric.pt", weights_only=True))
    other._update_count = 1
    assert other.compute().item() == metric.compute().item() == pytest.approx(0.2)


def test_a_row_that_is_no_row():
    with pytest.raises(InputError, match=r"task_learned=-1 .*expected a task number >= 0.*HINT"):
        metrics.Forgetting().update(-1, [0.5])


def test_unknown_name():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        metrics.Nothing  # noqa: B018
