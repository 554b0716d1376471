import pytest

from lightning_cl.report import Run

from .examples import example_results

NAN = float("nan")


def test_figures_of_a_run_that_goes_on_by_hand():
    matrix = [[0.9, None, None], [0.6, 0.8, None], [None, NAN, None]]
    run = Run({"task_names": ["a", "b", "c"], "accuracy_matrix": matrix, "average_accuracy": None, "status": "running"})
    assert run.learned == 2
    assert run.average_curve == [0.9, pytest.approx(0.7), None]
    assert run.average_accuracy == pytest.approx(0.7)
    assert run.forgetting == pytest.approx(0.3)
    assert [run.task_forgetting(j) for j in range(3)] == [pytest.approx(0.3), None, None]


def test_forgetting_of_a_loss_is_its_rise():
    metric = {"name": "loss", "higher_is_better": False}
    run = Run({"accuracy_matrix": [[0.5, None], [0.7, 0.4]], "metric": metric})
    assert run.forgetting == pytest.approx(0.2)
    assert (run.show(run.forgetting), run.unit, run.show(None)) == ("0.2000", "", "-")


def test_what_is_computed_here_is_what_the_metrics_say():
    from lightning_cl.functional import accuracy_matrix as metrics

    results = example_results(tasks=6) | {"average_accuracy": None, "forgetting": None}
    run = Run(results)
    assert run.average_accuracy == pytest.approx(metrics.average_accuracy(run.matrix))
    assert run.forgetting == pytest.approx(metrics.forgetting(run.matrix))


def test_sums_and_missing_parts():
    run = Run(example_results(tasks=3))
    assert run.seconds("train") == pytest.approx(2.0 + 2.4 + 2.8)
    assert run.validation_average is None
    empty = Run({})
    assert (empty.learned, empty.average_accuracy, empty.forgetting, empty.seconds("train"), empty.flops) == (
        0,
        *[None] * 4,
    )
    assert Run({"method": ["ewc", "er"]}).method == "ewc+er"


def test_validation_average_is_of_the_last_row():
    run = Run({"task_names": ["a", "b"], "validation_accuracy_matrix": [[0.9, 0.1], [0.5, 0.7]]})
    assert run.validation_average == pytest.approx(0.6)
