import json
import re
import warnings

import pytest

from lightning_cl.errors import InputError
from lightning_cl.report import Run, comparison_table, gather, main, write_comparison, write_report
from lightning_cl.report.comparison_terminal import unfinished_lines, validation_lines
from lightning_cl.report.lambda_curves import lambda_curves, lambda_line
from lightning_cl.report.lambda_plot import against_lambda
from lightning_cl.report.selection import chosen, overrides_of

from .examples import example_results, write_run
from .test_page import assert_self_contained, text_of

NAN = "loss=nan at step 7; expected a finite loss. HINT: lower the learning rate"
EMPTY = "importance that is 0 for every parameter of EWC.ewc; expected some that is not. HINT: the gradients vanish"


def results_of(lambda_, validation=None, test=0.5, seed=0, method="ewc", apply="gradient", **changes):
    """A run of a sweep of lambda over two tasks with ten classes in all."""
    rows = None if validation is None else [[0.5, None], [validation, validation]]
    entry = {"lambda_": lambda_, "apply": apply}
    config = {"seed": seed, "stream": {"n_tasks": 2}, "lambda_": lambda_, "callbacks": {"ewc": entry, "si": entry}}
    results = example_results("ewc", 2, seed, average_accuracy=test, validation_accuracy_matrix=rows, config=config)
    for i, task in enumerate(results["per_task"]):
        task["classes"] = [str(5 * i + j) for j in range(5)]
    return results | {"method": method} | changes


def run_of(*arguments, **keywords):
    return Run(results_of(*arguments, **keywords))


def failed(lambda_, error=NAN, **keywords):
    return run_of(lambda_, status="failed", error=error, **keywords)


def by_setting(rows):
    return {row.settings["lambda_"]: row.best_on_validation for row in rows}


def test_the_best_is_chosen_on_validation_and_never_on_test():
    # the better on test is the worse on validation, in both
    runs = [run_of(1.0, 0.7, 0.95, seed) for seed in (0, 1)] + [run_of(1e3, 0.9, 0.6, seed) for seed in (0, 1)]
    rows = comparison_table(runs)
    assert by_setting(rows) == {"1": False, "1000": True}
    (curve,) = lambda_curves(rows)
    assert [value for value, _ in curve.points] == [1.0, 1000.0]
    assert lambda_line(curve) == (
        "ewc: lambda from 1 to 1000; best on validation is 1000 (validation 90.00 ± 0.00 %, test 60.00 ± 0.00 %, n=2); "
        "that is the largest one: a wider sweep may find a better one"
    )
    assert validation_lines(rows) == [lambda_line(curve)]
    assert chosen(rows)["settings"] == {"lambda_": "1000"}


def test_a_lower_metric_is_chosen_the_other_way():
    loss = {"metric": {"name": "loss", "higher_is_better": False}}
    rows = comparison_table(
        [run_of(value, validation, **loss) for value, validation in ((1, 0.3), (10, 0.2), (100, 0.4))]
    )
    assert by_setting(rows) == {"1": False, "10": True, "100": False}
    assert "loss=" not in validation_lines(rows)[0]


def test_equal_ones_are_all_said_and_the_smallest_lambda_is_taken():
    rows = comparison_table([run_of(value, 0.9) for value in (1e2, 1e10, 1e3)] + [run_of(1.0, 0.8)])
    assert by_setting(rows) == {"1": False, "100": True, "1000": True, "1e10": True}
    (line,) = validation_lines(rows)
    assert "best on validation is 100 (" in line
    assert "equal on validation: lambda_=1000; lambda_=1e10)" in line
    assert "a wider sweep" not in line
    assert chosen(rows)["settings"] == {"lambda_": "100"}


@pytest.mark.parametrize("error", [NAN, EMPTY, "importance of 'w' is not finite; expected finite numbers"])
def test_a_lambda_of_which_one_seed_diverged_is_not_chosen(error):
    runs = [run_of(1.0, 0.7), run_of(1.0, 0.7, seed=1), run_of(1e3, 0.9), failed(1e3, error, seed=1)]
    rows = comparison_table([*runs, *(failed(1e6, error, seed=seed) for seed in (0, 1))])
    assert by_setting(rows) == {"1": True, "1000": False, "1e6": False}
    (line,) = validation_lines(rows)
    assert "best on validation is 1 (" in line
    assert line.endswith("; diverged at 1000 to 1e6 (3 runs)")
    said = error.partition(";")[0]
    assert unfinished_lines(rows) == [
        f"ewc (lambda_=1000): one run diverged ({said}), not counted: .",
        f"ewc (lambda_=1e6): 2 runs diverged ({said}), not counted: .",
    ]
    assert [len(row.as_dict()["unfinished"]) for row in rows] == [0, 1, 2]


@pytest.mark.parametrize(
    "other",
    [
        failed(1e3, "OSError: [Errno 28] No space left on device"),
        run_of(1e3, status="running"),
        run_of(1e3, None),
    ],
    ids=["full disk", "running", "not validated"],
)
def test_no_claim_where_a_lambda_could_still_be_better(other):
    rows = comparison_table([run_of(1.0, 0.7), run_of(10.0, 0.6), other])
    assert set(by_setting(rows).values()) == {None}
    assert validation_lines(rows) == ["ewc: lambda from 1 to 1000"]
    if other.status == "failed":
        assert "No space left" in unfinished_lines(rows)[0]


def test_nothing_is_left_when_all_diverge():
    rows = comparison_table([failed(1.0), failed(10.0)])
    assert validation_lines(rows) == ["ewc: lambda from 1 to 10; diverged at 1 to 10 (2 runs)"]
    with pytest.raises(InputError, match="none can be called best on validation data"):
        chosen(rows)


def test_one_curve_for_each_form_and_method_and_words_beside_the_axis():
    runs = [run_of(value, 0.6, apply=form) for value in (1, 10) for form in ("gradient", "proximal")]
    runs += [run_of(value, 0.7, method="si") for value in (0, 1.0, 10.0)] + [run_of("auto", 0.9, method="si")]
    runs += [run_of(5.0, 0.95, method="mas")]
    rows = comparison_table(runs)
    curves = lambda_curves(rows)
    assert [curve.label for curve in curves] == ["ewc (apply=gradient)", "ewc (apply=proximal)", "si"]
    assert sorted(text for text, _ in curves[2].others) == ["0", "auto"]
    assert "best on validation is auto (" in lambda_line(curves[2])
    assert "ewc: best on validation is apply=gradient, lambda_=1 (" in validation_lines(rows)[3]
    assert chosen(rows)["method"] == "mas"  # the only configuration of a method is in the running too
    drawn = against_lambda(curves).axes[0]
    assert len([line for line in drawn.lines if line.get_label().startswith("si, lambda ")]) == 2


def test_the_figure_shows_validation_test_spread_and_what_went_wrong():
    runs = [run_of(1.0, 0.8 + seed / 10, 0.7, seed) for seed in (0, 1)] + [run_of(100.0, 0.6, 0.65)]
    rows = comparison_table([*runs, failed(1e4), failed(100.0, seed=1), run_of(10.0, 0.11, 0.105)])
    ax = against_lambda(lambda_curves(rows)).axes[0]
    assert ax.get_xscale() == "log"

    def lines(**properties):
        return [
            line
            for line in ax.lines
            if len(line.get_xdata())
            and all(getattr(line, f"get_{key}")() == value for key, value in properties.items())
        ]

    (validation,) = lines(marker="o", linestyle="-")
    assert list(validation.get_xdata()) == [1.0, 10.0, 100.0, 1e4]
    assert list(validation.get_ydata())[:3] == pytest.approx([85.0, 11.0, 60.0])
    (test,) = lines(linestyle="--", marker="o")
    assert list(test.get_ydata())[:3] == pytest.approx([70.0, 10.5, 65.0])
    band = ax.collections[1].get_paths()[0].vertices[:, 1]  # the first one is of test data
    assert (band.min(), band.max()) == pytest.approx((11.0, 85 + 100 * 0.005**0.5), abs=0.1)
    assert [line.get_xdata()[0] for line in lines(marker="x")] == [100.0, 1e4]
    assert [line.get_xdata()[0] for line in lines(marker="*")] == [1.0]
    (ring,) = lines(markersize=10)
    assert ring.get_xdata()[0] == 10.0


@pytest.mark.parametrize(
    ("scenario", "classes", "chance"),
    [
        ("class_incremental", [["0", "1"], ["2", "3", "4"]], 1 / 5),
        ("task_incremental", [["0", "1"], ["2", "3", "4"]], (1 / 2 + 1 / 3) / 2),
        ("domain_incremental", [["a", "b"], ["a", "b"]], 1 / 2),
        ("class_incremental", [[], ["2"]], None),
    ],
)
def test_chance(scenario, classes, chance):
    results = results_of(1.0, scenario=scenario)
    for task, names in zip(results["per_task"], classes, strict=True):
        task["classes"] = names
    assert Run(results).chance == (None if chance is None else pytest.approx(chance))
    for average, at_chance in ((0.0, True), (chance or 0, True), ((chance or 0) + 0.03, False)):
        assert Run(results | {"average_accuracy": average}).at_chance == (at_chance and chance is not None)
    assert Run(results | {"metric": {"name": "loss", "higher_is_better": False}}).chance is None


def test_page_json_and_one_runs_own_page(tmp_path):
    for lambda_ in (1.0, 1e2, 1e13):
        for form in ("gradient", "proximal"):
            blown = lambda_ > 1e3 and form == "gradient"
            changes = {"status": "failed", "error": NAN} if blown else {}
            for seed in (0, 1):
                results = results_of(lambda_, 0.9 - lambda_ / 1e15, seed=seed, apply=form, **changes)
                folder = write_run(tmp_path / form / f"{lambda_:g}" / str(seed), results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_comparison(gather([tmp_path]), tmp_path / "out").read_text()
    assert_self_contained(page)
    text = text_of(page)
    assert "ewc (apply=gradient): lambda from 1 to 1e13; best on validation is 1 (" in text
    assert "diverged at 1e13 (2 runs)" in text
    assert re.search(r"lambda_=1e13 0 diverged - -", text)
    assert "Star: best on validation" in text
    assert text.index("best on validation is 1") < text.index("average accuracy")  # the answer comes first
    (stream,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["streams"]
    gradient, proximal = stream["lambda_curves"]
    assert [point["lambda"] for point in gradient["points"]] == [1.0, 100.0, 1e13]
    assert [point["diverged"] for point in gradient["points"]] == [0, 0, 2]
    assert [point["best_on_validation"] for point in proximal["points"]] == [True, False, False]
    assert proximal["points"][0]["validation"]["mean"] == pytest.approx(0.9)
    lost = write_run(tmp_path / "lost", results_of(1.0, status="failed", error=NAN))
    assert "This run diverged" in text_of(write_report(lost).read_text())
    assert "This run diverged" not in text_of(write_report(folder).read_text())


def test_best_on_the_command_line(tmp_path, capsys):
    for lambda_, validation in ((1.0, 0.5), (10.0, 0.7)):
        folder = write_run(tmp_path / "runs" / f"{lambda_:g}", results_of(lambda_, validation))
        (folder / ".hydra").mkdir()
        overrides = ["method=ewc", f"lambda_={lambda_}", "seed=0", "model.hidden=[3]", "x='a b'"]
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(overrides))
    assert main([str(tmp_path / "runs"), "--best"]) == 0
    # brackets stay as they are, so that $(...) can be used; what holds spaces is quoted for xargs
    assert capsys.readouterr().out == "method=ewc lambda_=10.0 model.hidden=[3] 'x='\"'\"'a b'\"'\"''\n"
    assert main([str(tmp_path / "runs"), "--best", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["settings"], said["folders"]) == ({"lambda_": "10"}, [str(tmp_path / "runs" / "10")])
    assert (said["validation"]["mean"], said["test"]["n"]) == (pytest.approx(0.7), 1)
    assert not list((tmp_path / "runs").glob("comparison*"))  # nothing is written

    (folder / ".hydra" / "overrides.yaml").unlink()
    assert overrides_of(Run({}, folder)) is None
    assert main([str(tmp_path / "runs"), "--best"]) == 2
    assert "no .hydra/overrides.yaml in" in capsys.readouterr().err
    write_run(tmp_path / "runs" / "other", results_of(1.0, 0.5, stream="other"))
    assert main([str(tmp_path / "runs"), "--best"]) == 2
    assert "runs on 2 streams (other, class_incremental; split_digits, class_incremental)" in capsys.readouterr().err
    assert main([str(tmp_path / "runs"), "--json"]) == 2
    assert "--json without --best" in capsys.readouterr().err


def test_numbers_typed_in_two_ways_are_one_configuration():
    rows = comparison_table([run_of(100, 0.5), run_of(1e2, 0.5, seed=1), run_of(1e5, 0.4)])
    assert [(row.settings["lambda_"], row.n) for row in rows] == [("100", 2), ("1e5", 1)]


def test_curves_of_two_optimizers_are_named_by_them():
    kinds = {
        "Adam": {"_target_": "torch.optim.Adam", "lr": 0.001},
        "SGD": {"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.0},
    }
    runs = []
    for optimizer in kinds.values():
        for value in (1.0, 10.0):
            results = results_of(value, 0.9)
            results["config"] = {**results["config"], "optimizer": optimizer}
            runs.append(Run(results))
    curves = lambda_curves(comparison_table(runs))
    assert [curve.label for curve in curves] == [
        "ewc (optimizer=Adam, lr=0.001)",
        "ewc (optimizer=SGD, lr=0.1, momentum=0)",
    ]
    legend = against_lambda(curves).legends[0]
    assert [text.get_text().strip() for text in legend.get_texts()] == [curve.label for curve in curves]


def test_a_setting_that_is_missing_in_one_of_the_same_class_is_said():
    runs = []
    for extra in ({}, {"momentum": 0.9}):
        for value in (1.0, 10.0):
            results = results_of(value, 0.9)
            results["config"] = {**results["config"], "optimizer": {"_target_": "torch.optim.SGD", **extra}}
            runs.append(Run(results))
    labels = [curve.label for curve in lambda_curves(comparison_table(runs))]
    assert labels == ["ewc (momentum=0.9)", "ewc (momentum=unset)"]
