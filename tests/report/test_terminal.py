import io

import pytest
from rich.console import Console

from lightning_cl.report import Run, comparison_table, matrix_table, print_comparison, sweep_summary, task_table

from .examples import example_results


def printed(function, *args, width=120, **kwargs):
    console = Console(file=io.StringIO(), width=width)
    function(*args, console=console, **kwargs)
    return console.file.getvalue()


def test_task_table_after_the_second_task():
    results = example_results(tasks=3, status="running", average_accuracy=None, forgetting=None)
    results["accuracy_matrix"] = [[0.9, None, None], [0.5, 0.8, None], [None] * 3]
    results["per_task"] = results["per_task"][:2]
    text = printed(task_table, results)
    assert "er on split_digits: accuracy (%) after task 2 of 3 (task 1)" in text
    assert text.split()[-6:] == ["50.00", "80.00", "65.00", "40.00", "3.0", "s"]
    assert "task 2 " not in text.splitlines()[2]
    assert "no task learned yet" in printed(task_table, {**results, "accuracy_matrix": [[None] * 3] * 3})


@pytest.mark.parametrize("width", [60, 80, 200])
def test_wide_streams_stay_within_the_terminal(width):
    results = example_results(tasks=50, references=True)
    for function in (task_table, matrix_table):
        text = printed(function, results, width=width)
        assert "…" in text
        assert all(len(line) <= width for line in text.splitlines())
        assert f"{100 * results['average_accuracy']:.2f}" in text


def test_matrix_table_stands_beside_its_bounds_and_says_where_the_report_is(tmp_path):
    results = example_results(references=True)
    text = printed(matrix_table, results, width=130, report=tmp_path / "report.html")
    for row in results["accuracy_matrix"]:
        for value in row:
            assert value is None or f" {100 * value:.1f} " in text
    joint, naive = (results["reference_methods"][name] for name in ("joint", "naive"))
    line = next(line for line in text.splitlines() if "joint (upper bound)" in line)
    assert line.split()[-2:] == [f"{100 * joint['average_accuracy']:.2f}", "-"]
    line = next(line for line in text.splitlines() if "naive (lower bound)" in line)
    assert line.split()[-2:] == [f"{100 * naive[key]:.2f}" for key in ("average_accuracy", "forgetting")]
    assert "task 4" in next(line for line in text.splitlines() if "after" in line)
    assert text.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "status: failed, 5 of 5" in printed(matrix_table, {**results, "status": "failed"})


def test_one_task_and_names_in_brackets():
    results = example_results(tasks=1, task_names=["[red]a[/red]"]) | {"method": "[bold]er"}
    assert "[red]a[/red]" in printed(matrix_table, results)
    assert "[bold]er" in printed(task_table, results)


def test_comparison_in_a_narrow_terminal_keeps_the_ranking():
    runs = [Run(example_results(method, seed=seed)) for method in ("naive", "er") for seed in (0, 1)]
    wide, narrow = (printed(print_comparison, comparison_table(runs), width=width) for width in (200, 80))
    assert "learning accuracy" in wide
    assert "learning accuracy" not in narrow
    assert narrow.index(" er ") < narrow.index(" naive ")
    assert all(len(line) <= 80 for line in narrow.splitlines())


def test_sweep_summary_ranks_and_names_what_failed():
    jobs = [
        {"name": "method=naive", "status": "finished", "average_accuracy": 0.2, "forgetting": 0.9, "seconds": 61.0},
        {"name": "method=ewc", "status": "failed", "error": "lambda=-1;\nexpected [>= 0]", "folder": "runs/ewc"},
        {"name": "method=er", "status": "finished", "average_accuracy": 0.9, "forgetting": None, "seconds": 2.0},
    ]
    lines = [line for line in printed(sweep_summary, jobs).splitlines() if line.strip()]
    assert lines[0].strip() == "Sweep: 2 of 3 jobs finished"
    assert [line.split()[:3] for line in lines[3:6]] == [
        ["1", "method=er", "finished"],
        ["2", "method=naive", "finished"],
        ["-", "method=ewc", "failed"],
    ]
    assert lines[4].split()[3:] == ["20.00", "90.00", "1", "min", "01", "s", "-"]
    assert lines[-1] == "failed: method=ewc: lambda=-1; expected [>= 0]"
    losses = [
        {"name": name, "status": "finished", "average_accuracy": value} for name, value in (("a", 2.0), ("b", 1.0))
    ]
    text = printed(sweep_summary, losses, higher_is_better=False)
    assert text.index(" b ") < text.index(" a ")
    assert "2.0000" in text
