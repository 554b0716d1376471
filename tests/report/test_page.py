import errno
import os
import re
import warnings

import pytest

from lightning_cl.errors import InputError
from lightning_cl.report import gather, write_comparison, write_report
from lightning_cl.report.style import ink_on

from .examples import continual_points, example_results, write_run


def assert_self_contained(page):
    """Nothing on the page is fetched from anywhere."""
    assert not re.search(r"https?://", page)
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"<(link|script|iframe|object)\b|@import|url\(", page)


def text_of(page):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", re.sub(r'src="[^"]*"', "", page)))


def test_report_says_what_the_results_say(tmp_path):
    results = example_results(references=True, validation=True, continual_evaluation=continual_points())
    folder = write_run(tmp_path, results)
    page = write_report(folder).read_text()
    text = text_of(page)
    assert_self_contained(page)
    for key in (
        "average_accuracy",
        "forgetting",
        "average_incremental_accuracy",
        "learning_accuracy",
        "backward_transfer",
    ):
        assert f"{100 * results[key]:.2f} %" in text, key
    for row in results["accuracy_matrix"] + results["validation_accuracy_matrix"]:
        for value in row:
            assert value is None or f" {100 * value:.2f} " in text
    for reference in results["reference_methods"].values():
        assert f" {100 * reference['average_accuracy']:.2f} " in text
    for said in ("41.12 GFLOPs", "replay 128.00 KiB", "512.00 MiB", "190,810", "memory_size: 200", "hash 8d1f0c55a3b2"):
        assert said in text
    assert "lightning_cl 0.1.0" in text
    assert "This run" not in text
    names = {"accuracy_matrix", "accuracy_over_tasks", "seconds_per_task", "continual_evaluation"}
    assert {file.name for file in folder.iterdir()} == {"results.json", "report.html", "plots"}
    assert {file.name for file in (folder / "plots").iterdir()} == {f"{name}.png" for name in names}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (folder / "plots").iterdir())


def test_everything_is_escaped(tmp_path):
    evil = "<script>alert(1)</script> & $x_$ [red]"
    results = example_results(tasks=2, method="er", references=True) | {
        "method": evil,
        "stream": evil,
        "task_names": [evil, "_hidden"],
        "config": {evil: evil},
        "versions": {evil: evil},
        "method_state_bytes": {evil: 3},
        "status": "failed",
        "error": evil,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(write_run(tmp_path / "a", results)).read_text()
    write_run(tmp_path / "b", {**results, "status": "finished"})
    write_run(tmp_path / "c", {**results, "status": "finished", "seed": 1})
    comparison = write_comparison(gather([tmp_path]), tmp_path / "out").read_text()
    for text in (page, comparison):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert "<script" not in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize("status", ["running", "failed"])
def test_an_unfinished_run_says_so_and_has_no_made_up_numbers(tmp_path, status):
    results = example_results(tasks=4, status=status)
    for key in (
        "average_accuracy",
        "forgetting",
        "learning_accuracy",
        "compute",
        "peak_rss_bytes",
        "method_state_bytes",
    ):
        results[key] = None
    results["accuracy_matrix"][2:] = [[None] * 4] * 2
    results["per_task"] = results["per_task"][:2]
    page = text_of(write_report(write_run(tmp_path, results)).read_text())
    assert "2 of 4 tasks learned and evaluated" in page
    row = results["accuracy_matrix"][1]
    assert f"{50 * (row[0] + row[1]):.2f} %" in page
    assert not re.search(r"Compute|Peak memory|nan|None", page)


@pytest.mark.parametrize(
    "results",
    [
        example_results(tasks=1),
        example_results("joint", tasks=1),
        example_results("joint"),
        example_results("ewc", tasks=50, references=True),
        example_results("ewc", metric={"name": "loss", "higher_is_better": False}),
        example_results(
            tasks=3, accuracy_matrix=[[None] * 3] * 3, per_task=[], average_accuracy=None, status="running"
        ),
        {"schema": 1, "method": "er", "stream": "s", "accuracy_matrix": []},
    ],
    ids=["one task", "joint of one task", "joint", "fifty tasks", "loss", "nothing learned", "hardly anything"],
)
def test_any_shape_of_run(tmp_path, results):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_report(write_run(tmp_path, results)).read_text()
    assert_self_contained(page)
    assert "nan" not in text_of(page)
    assert page.count("<figure") == len(list(tmp_path.glob("plots/*.png")))


def test_a_report_is_the_same_every_time_and_leaves_no_temporary_files(tmp_path):
    folder = write_run(tmp_path, example_results(tasks=2))
    first = write_report(folder).read_bytes()
    assert write_report(folder, tmp_path / "other").read_bytes() == first
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith(".tmp")]


def test_a_folder_that_cannot_be_written(tmp_path):
    folder = write_run(tmp_path / "run", example_results(tasks=1))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*expected a folder that can be written. HINT: choose another"):
        write_report(folder, tmp_path / "file" / "below")


def test_a_disk_that_fills_while_plots_are_written(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", example_results(tasks=1))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"^no space left to write '.*'; expected a disk with room. HINT: free some"):
        write_report(folder)
    assert not [file for file in tmp_path.rglob("*") if file.name.endswith(".tmp")]


def test_ink_has_the_contrast_that_people_need():
    from matplotlib import colormaps

    def luminance(color):
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color[:3]]
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for i in range(256):
        cell = luminance(colormaps["viridis"](i))
        ink = 1.0 if ink_on(colormaps["viridis"](i)) == "#ffffff" else 0.0
        assert (max(cell, ink) + 0.05) / (min(cell, ink) + 0.05) >= 4.5
