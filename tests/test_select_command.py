"""``lightning-cl select``, on scikit-learn's digits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.command_line import Call, call
from tests.report.test_page import assert_self_contained, text_of

__all__ = ["call"]
SMALL, SMALLER = "'mlp model.backbone.hidden=[64]'", "'mlp model.backbone.hidden=[4]'"


class Pixels(nn.Module):
    """Some of the pixels."""

    def __init__(self, input_shape: Any, kept: int = 3) -> None:
        super().__init__()
        self.kept = self.feature_dim = kept

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, 20 : 20 + self.kept]


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "selection.json").read_text())


def test_candidates_are_ranked_and_one_that_fails_is_a_line(call: Call, tmp_path: Path):
    outcome = call("select", f"candidates=[{SMALLER},{SMALL},torchvision:resnet999,mlpp]", "--max-samples", "300")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "runs" / "select" / "split_digits"
    found = result(folder)
    names = [row["name"] for row in found["candidates"]]
    assert names == ["mlp model.backbone.hidden=[64]", "mlp model.backbone.hidden=[4]", "torchvision:resnet999", "mlpp"]
    best, second, *failed = found["candidates"]
    assert (best["mean_rank"], second["mean_rank"], found["agreement"]) == (1.0, 2.0, 1.0)
    assert (best["width"], best["parameters"], best["bytes"]) == (64, 64 * 64 + 64, 4 * (64 * 64 + 64))
    assert best["probe"] > second["probe"]
    assert best["seconds_per_sample"] > 0
    assert [row["error"].split(";")[0] for row in failed] == ["model='resnet999'", "candidate 'mlpp'"]
    facts = (found["samples"], found["available"], found["classes"], found["majority"])
    assert facts == (300, 1438, 10, 0.1)
    for text in ("300 of 1,438 samples, class-balanced", "- mlpp: candidate 'mlpp'; expected", "Kendall's W) 1.00"):
        assert text in outcome.out
    assert "best by mean rank: model=mlp model.backbone.hidden=[64]" in outcome.out
    assert (folder / "selection.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "selection.html").read_text()
    assert_self_contained(page)
    assert "torchvision:resnet999" in text_of(page)


def test_it_is_the_same_from_the_cache_and_without_one(call: Call, tmp_path: Path):
    arguments = ["select", f"candidates=[{SMALL}]", "--max-samples", "200", "--out", "a"]
    assert call(*arguments).code == 0
    first = result(tmp_path / "a")
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "a" / "features").rglob("*.pt")}
    assert [file.name for file in files] == ["features.pt"]
    assert call(*arguments).code == 0
    assert result(tmp_path / "a") == first
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "a" / "features").rglob("*.pt")} == files
    assert call(*arguments[:-1], "b", "--no-cache").code == 0
    assert not (tmp_path / "b" / "features").exists()
    scores = [[row[key] for key in ("logme", "probe", "knn")] for row in (
        first["candidates"][0], result(tmp_path / "b")["candidates"][0])]  # fmt: skip
    assert scores[0] == scores[1]


def test_validation_data_are_scored_on_and_one_task_will_do(call: Call, tmp_path: Path):
    outcome = call(
        "select", f"candidates=[{SMALL}]", "validation_fraction=0.2", "--task", "1", "--k", "5", "--out", "a"
    )
    assert outcome.code == 0
    found = result(tmp_path / "a")
    assert (found["classes"], found["tasks"], found["k"]) == (2, ["task 1"], 5)
    assert found["validation_samples"] == round(0.25 * found["samples"])
    assert f"scored on {found['validation_samples']} validation samples" in outcome.out


@pytest.mark.parametrize("way", [
    ("torchvision:mobilenet_v3_small@{file}", ""),
    ("torchvision:mobilenet_v3_small", " model.backbone.weights={file}"),
    ("torchvision", " model.backbone.model=mobilenet_v3_small model.backbone.weights={file}"),
])  # fmt: skip
def test_weights_from_a_file_against_the_same_network_without(call: Call, tmp_path: Path, way: tuple[str, str]):
    pytest.importorskip("torchvision")
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = torchvision.models.mobilenet_v3_small()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    word, extra = (part.format(file=tmp_path / "w.pt") for part in way)
    name = word + extra
    outcome = call("select", f"candidates=['{name}']", "--with-random", "--max-samples", "60", "--out", "a")
    assert outcome.code == 0, outcome.err
    rows = {row["name"]: row for row in result(tmp_path / "a")["candidates"]}
    baseline = f"{word}:random{extra}"
    assert set(rows) == {name, baseline}
    assert "error" not in rows[name]
    assert rows[name]["logme"] != rows[baseline]["logme"]
    assert f"model.backbone.weights={tmp_path / 'w.pt'}" in rows[name]["overrides"]
    assert rows[baseline]["overrides"][-1] == "++model.backbone.weights=null"


def test_a_backbone_of_ones_own_without_parameters(call: Call, tmp_path: Path):
    target = "+model.backbone._partial_=true model.backbone._target_=tests.test_select_command.Pixels"
    many, few = f"'custom {target} +model.backbone.kept=30'", f"'custom {target}'"
    assert call("select", f"candidates=[{few},{many}]", "--max-samples", "300", "--out", "a").code == 0
    found = result(tmp_path / "a")
    assert [row["width"] for row in found["candidates"]] == [30, 3]
    assert [row["parameters"] for row in found["candidates"]] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"no candidates=[...]; expected the models to be compared"),
        (["candidates=[nothing,torchvision:nope]"], "no candidate works, the first because: candidate 'nothing'"),
        (["candidates=[[mlp]]"], "candidates=[[mlp]]; expected a list of names"),
        (["candidates=[]"], "candidates=[]; expected a list of names"),
        (["candidates=[mlp]", "model=mlp"], "model=mlp beside candidates; expected overrides of a model behind"),
        (["candidates=[mlp]", "--k", "0"], "k=0; expected an integer >= 1"),
        (["candidates=[mlp]", "--folds", "1"], "folds=1; expected an integer >= 2"),
        (["candidates=[mlp]", "--max-samples", "3"], "max_samples=3; expected an integer >= 10"),
        (["candidates=[mlp]", "stream=nope"], "stream=nope; expected one of"),
        (["candidates=[mlp]", "word"], "'word'; expected key=value, or candidates=[...]"),
        (["candidates=[mlp]", "--what"], "unrecognized arguments: --what"),
        (["candidates=[mlp]", "--task", "9"], "no candidate works, the first because: --task 9; expected 0 to 4"),
    ],
)
def test_what_it_refuses(call: Call, arguments: list[str], message: str):
    outcome = call("select", *arguments)
    assert outcome.code == 2
    line = outcome.err.splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert "HINT: " in line


def test_help_says_what_candidates_are(call: Call):
    outcome = call("select", "--help")
    assert outcome.code == 0
    assert "hf:FOLDER" in outcome.out
    assert "select" in call("--help").out


def test_texts_in_each_encoders_own_tokens(call: Call, tmp_path: Path):
    pytest.importorskip("transformers")
    rows = [f"{'good' if i % 2 else 'bad'},{'fine nice' if i % 2 else 'awful poor'} thing {i}" for i in range(40)]
    (tmp_path / "t.csv").write_text("\n".join(["label,text", *rows]))
    small = "hf_text_small model.backbone.config.hidden_size=16 model.backbone.config.num_hidden_layers=1"
    stream = ["stream=text_files", "stream.dataset.path=t.csv", "stream.n_tasks=1"]
    outcome = call("select", *stream, f"candidates=['{small}',mlp]", "--k", "3", "--out", "a")
    assert outcome.code == 0, outcome.err
    works, fails = result(tmp_path / "a")["candidates"]
    assert (works["name"], works["width"]) == (small, 16)
    assert works["probe"] > 0.9
    assert "error" in fails
