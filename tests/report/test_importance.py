import re
import warnings

import pytest

from lightning_cl.errors import InputError
from lightning_cl.report import importance_table, write_importance_page, write_report
from lightning_cl.report.importance import MOST_BARS, importance_figures, write_importance_plot

from .examples import example_results, write_run
from .test_page import assert_self_contained, text_of


def example_rows(count=4, **changes):
    """What summarize_importance returns for ``count`` parameters, the later the more important."""
    weights = [(i + 1) ** 2 for i in range(count)]
    return [
        {
            "name": f"backbone.layers.{i}.weight",
            "shape": [8, i + 1],
            "size": 8 * (i + 1),
            "mean": 1e-4 * weights[i],
            "max": 1e-2 * weights[i],
            "sum": 8e-4 * (i + 1) * weights[i],
            "share": weights[i] / sum(weights),
            "zeros": 2,
            "log10_quantiles": [-7.0 + 0.1 * i, -5.0, -4.5, -4.0, -2.0],
            **changes,
        }
        for i in range(count)
    ]


def section_of(page):
    return text_of(page).partition("Importance of parameters")[2].partition("Test accuracy matrix")[0]


def test_a_runs_page_has_a_section_for_each_importance(tmp_path):
    rows = example_rows()
    folder = write_run(tmp_path / "one", example_results("ewc", importance={"ewc": rows}))
    page = write_report(folder).read_text()
    assert_self_contained(page)
    section = section_of(page)
    assert "(ewc) 4 parameters with 80 values, sum 0.08" in section
    for cells in (
        "layers.0.weight 8 x 1 0.0001 0.01 0.0008 3.3 25.0",
        "layers.3.weight 8 x 4 0.0016 0.16 0.0512 53.3 6.2",
    ):
        assert cells in section
    plots = {file.stem for file in (folder / "plots").iterdir()}
    assert {"importance_share", "importance_distribution"} < plots
    assert page.count("<figure") == len(plots)
    both = {"ewc": rows, "<b>si": example_rows(2)}
    folder = write_run(tmp_path / "two", example_results("ewc", importance=both))
    page = write_report(folder).read_text()
    assert page.count("Importance of parameters") == 2
    assert "<b>si" not in page
    assert (folder / "plots" / "importance_2_share.png").is_file()


@pytest.mark.parametrize("found", [None, {}])
def test_a_run_without_has_no_section(tmp_path, found):
    folder = write_run(tmp_path, example_results("er", importance=found))
    assert "Importance" not in text_of(write_report(folder).read_text())
    assert not list((folder / "plots").glob("importance*"))


def test_many_parameters_unknown_numbers_and_odd_names(tmp_path, capsys):
    rows = example_rows(80)
    rows[3] |= {"mean": None, "max": None, "sum": None, "share": None, "log10_quantiles": None, "zeros": 32}
    rows[79] |= {"name": "[red]_$x$<script>" + "y" * 60, "share": 2e-5}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folder = write_run(tmp_path, example_results("ewc", importance={"ewc": rows}))
        section = section_of(write_report(folder).read_text())
        importance_table(rows, "title")
    assert f"The {MOST_BARS} parameters with the largest share" in section
    assert "layers.3.weight 8 x 4 - - - - 100.0" in section
    assert "0.002 0.3" in section  # small shares are not 0.0
    assert "<script" not in section
    out = capsys.readouterr().out
    assert out.count("backbone.layers.") == 79
    assert "[red]_$x$<script>" in out
    labels = importance_figures(rows)["share"].axes[0].get_yticklabels()
    assert len(labels) == MOST_BARS
    numbers = [int(re.search(r"\d+", label.get_text()).group()) for label in labels]
    assert numbers == sorted(numbers)  # the order of the network, not of importance


def test_figures_show_the_rows():
    figures = importance_figures(example_rows())
    bars = figures["share"].axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([100 * row["share"] for row in example_rows()])
    medians = [line.get_xdata()[0] for line in figures["distribution"].axes[0].lines if line.get_marker() == "o"]
    assert medians == pytest.approx([10**-4.5] * 4)
    assert not importance_figures(example_rows(share=None, log10_quantiles=None))
    assert list(importance_figures(example_rows(log10_quantiles=None))) == ["share"]


def test_a_page_and_an_image_of_their_own(tmp_path):
    page = write_importance_page(
        example_rows(), "Importance in <f.pt>", ["fisher", "12 samples"], tmp_path / "new" / "p.html"
    )
    text = page.read_text()
    assert_self_contained(text)
    assert "Importance in &lt;f.pt&gt;" in text
    assert "12 samples" in text_of(text)
    assert text.count("<figure") == 2
    for rows in (example_rows(), example_rows(share=None), example_rows(share=None, log10_quantiles=None)):
        assert write_importance_plot(rows, tmp_path / "plot").read_bytes().startswith(b"\x89PNG")
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} == {"p.html", "plot"}
    with pytest.raises(InputError, match="cannot write"):
        write_importance_plot(example_rows(), tmp_path / "plot" / "below.png")
