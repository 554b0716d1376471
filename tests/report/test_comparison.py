import statistics

import pytest

from lightning_cl.report import Run, comparison_table

from .examples import example_results


def run_of(value, seed=0, method="er", lr=0.1, validation=None, **changes):
    config = {"seed": seed, "stream": {"n_tasks": 2}, "model": {"lr": lr}}
    rows = None if validation is None else [[0.5, None], [validation, validation]]
    changes = {"average_accuracy": value, "validation_accuracy_matrix": rows, "config": config} | changes
    return Run(example_results(method, 2, seed, **changes))


def test_mean_sd_and_rank_by_hand():
    runs = [run_of(v, s) for s, v in enumerate((0.80, 0.84, 0.88))] + [run_of(0.9, 0, "ewc"), run_of(0.2, 0, "naive")]
    rows = comparison_table(runs)
    assert [(row.rank, row.method, row.n) for row in rows] == [(1, "ewc", 1), (2, "er", 3), (3, "naive", 1)]
    er = rows[1].average_accuracy
    assert (er.mean, er.sd) == (pytest.approx(0.84), pytest.approx(0.04))
    assert rows[0].average_accuracy.sd is None
    seconds = [run.seconds("train") for run in runs[:3]]
    assert rows[1].train_seconds.sd == pytest.approx(statistics.stdev(seconds))
    assert rows[1].as_dict()["average_accuracy"] == {"mean": pytest.approx(0.84), "sd": pytest.approx(0.04), "n": 3}


def test_a_lower_metric_ranks_the_other_way_and_equal_means_share_a_rank():
    loss = {"metric": {"name": "loss", "higher_is_better": False}}
    values = {"er": 0.3, "ewc": 0.1, "naive": 0.3}
    rows = comparison_table([run_of(v, method=m, **loss) for m, v in values.items()])
    assert [(row.rank, row.method) for row in rows] == [(1, "ewc"), (2, "er"), (2, "naive")]


def test_configurations_are_rows_and_the_best_is_chosen_on_validation_only():
    runs = [run_of(0.9, s, lr=0.1, validation=0.70 + s / 100) for s in (0, 1)]
    runs += [run_of(0.8, s, lr=0.01, validation=0.75 + s / 100) for s in (0, 1)]
    rows = comparison_table(runs)
    assert [(row.settings, row.rank, row.best_on_validation) for row in rows] == [
        ({"lr": "0.1"}, 1, False),
        ({"lr": "0.01"}, 2, True),
    ]
    assert rows[1].label == "er (lr=0.01)"
    assert rows[1].validation_average.mean == pytest.approx(0.755)
    # one run without validation, and nothing can be said
    assert [row.best_on_validation for row in comparison_table([*runs, run_of(0.9, 2)])] == [None, None]
    assert [row.best_on_validation for row in comparison_table(runs[:2])] == [None]


def test_streams_are_not_ranked_against_each_other():
    other = {"seed": 0, "stream": {"n_tasks": 5}, "model": {"lr": 0.1}}
    runs = [run_of(0.5), run_of(0.9, scenario="task_incremental"), run_of(0.7, config=other), run_of(0.6, method="ewc")]
    found = [(row.stream, row.scenario, row.method, row.rank) for row in comparison_table(runs)]
    assert found == [
        ("split_digits (n_tasks=2)", "class_incremental", "ewc", 1),
        ("split_digits (n_tasks=2)", "class_incremental", "er", 2),
        ("split_digits (n_tasks=5)", "class_incremental", "er", 1),
        ("split_digits", "task_incremental", "er", 1),
    ]


def test_unfinished_runs_are_listed_and_not_counted():
    rows = comparison_table([run_of(0.8), run_of(0.1, 1, status="running"), run_of(0.1, 0, "ewc", status="failed")])
    assert [(row.method, row.n, len(row.unfinished), row.rank) for row in rows] == [
        ("er", 1, 1, 1),
        ("ewc", 0, 1, None),
    ]
    assert rows[0].average_accuracy.values == (0.8,)


def test_a_copy_is_not_another_seed():
    with pytest.warns(UserWarning, match="repeats"):
        rows = comparison_table([run_of(0.8), run_of(0.8), run_of(0.9, 1)])
    assert rows[0].average_accuracy.values == (0.8, 0.9)
    # another order of classes is another run
    assert comparison_table([run_of(0.8), run_of(0.8, class_order_seed=1)])[0].n == 2
    # and so is one whose parts have other seeds
    runs = [run_of(0.8, config={"seed": 0, "stream": {"seed": i}}) for i in (0, 1)]
    assert comparison_table(runs)[0].n == 2


def test_data_of_another_folder_and_fewer_tasks_are_another_stream():
    configs = [{"stream": {"dataset": {"train": {"root": root}}}, "limit_tasks": n} for root, n in [("a", 2), ("b", 2)]]
    rows = comparison_table([run_of(0.9, 0, config=configs[0]), run_of(0.1, 1, config=configs[1])])
    assert [(row.stream, row.n) for row in rows] == [("split_digits (root=a)", 1), ("split_digits (root=b)", 1)]
    rows = comparison_table([run_of(0.9, config={"limit_tasks": n}) for n in (1, 2)])
    assert [(row.stream, row.rank) for row in rows] == [(f"split_digits (limit_tasks={n})", 1) for n in (1, 2)]
