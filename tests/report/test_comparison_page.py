import json

from lightning_cl.report import gather, write_comparison, write_report

from .examples import example_results, write_run
from .test_page import assert_self_contained, text_of


def test_the_page_the_json_and_the_markdown_agree(tmp_path):
    for method in ("er", "naive", "joint"):
        for seed in (0, 1):
            results = example_results(
                method, 3, seed, average_accuracy={"er": 0.8, "naive": 0.2, "joint": 0.95}[method]
            )
            results["average_accuracy"] += seed / 50
            folder = write_run(tmp_path / f"method={method}" / f"seed={seed}", results)
    write_report(folder)
    write_run(tmp_path / "failed", example_results("ewc", 3, status="failed"))
    page = write_comparison(gather([tmp_path]), tmp_path / "out")
    assert page == tmp_path / "out" / "comparison.html"
    html, text = page.read_text(), text_of(page.read_text())
    assert_self_contained(html)
    markdown = (tmp_path / "out" / "comparison.md").read_text()
    for mean in ("96.00", "81.00", "21.00"):
        # of two values 2 points apart the sd is sqrt(2)
        assert f"{mean} ± 1.41" in text
        assert f"{mean} ± 1.41" in markdown
    assert "ewc: failed, not counted" in text
    assert 'href="./../method%3Djoint/seed%3D1/report.html"' in html
    (stream,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["streams"]
    assert [(row["rank"], row["method"], row["n"]) for row in stream["rows"]] == [
        (1, "joint", 2),
        (2, "er", 2),
        (3, "naive", 2),
        (None, "ewc", 0),
    ]
    assert stream["rows"][1]["seeds"] == [0, 1]
    names = {"comparison_average_accuracy", "comparison_accuracy_over_tasks", "comparison_accuracy_against_flops"}
    assert {file.stem for file in (tmp_path / "out" / "plots").iterdir()} == names


def test_many_configurations_several_streams_and_runs_without_numbers(tmp_path):
    for i in range(30):
        config = {"model": {"lr": i}, "callbacks": {"replay": {"policy": "class_balanced" * 3}}}
        write_run(tmp_path / str(i), example_results("er", 2, config=config, validation=True, compute=None))
    write_run(tmp_path / "one", example_results("naive", 1, stream="other", scenario="<b>"))
    write_run(tmp_path / "none", example_results("er", 2, stream="third", status="running"))
    page = write_comparison(gather([tmp_path]), tmp_path / "out").read_text()
    assert_self_contained(page)
    text = text_of(page)
    assert "er: best on validation is lr=" in text
    assert "<b>" not in page
    assert "nan" not in text
    assert page.index("other") < page.index("split_digits") < page.index("third")
