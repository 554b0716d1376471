"""``lightning-cl soup`` and ``lightning-cl interpolate`` on the folders of real runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from lightning_cl import FineTuningModule, InputError, cli
from lightning_cl.checkpoints import interpolate_checkpoints, read_model
from lightning_cl.functional import average_states, interpolate
from lightning_cl.soup import cook
from tests.command_line import Call, call  # noqa: F401

QUICK = (
    *("stream=split_digits", "stream.n_tasks=2", "model.backbone.hidden=[16]", "reference_methods=[]"),
    *("progress_bar=false", "accelerator=cpu", "validation_fraction=0.2", "method=joint"),
)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    GlobalHydra.instance().clear()
    options = ["trainer.max_epochs=2", "optimizer.lr=0.02,0.01,0.00001", f"hydra.sweep.dir={folder}"]
    assert cli.main(["-m", *QUICK, *options]) == 0
    GlobalHydra.instance().clear()
    return folder


def folders(sweep: Path) -> list[Path]:
    return sorted(file.parent for file in sweep.rglob("results.json"))


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


def test_a_uniform_soup_is_the_mean_and_loads_from_its_file_alone(sweep: Path, tmp_path: Path):
    soup = cook([sweep], tmp_path / "soup.ckpt")
    states = [read_model(folder)["state_dict"] for folder in folders(sweep)]
    module = FineTuningModule.load_from_checkpoint(tmp_path / "soup.ckpt", weights_only=True)
    assert all(torch.equal(value, average_states(states)[name]) for name, value in module.state_dict().items())
    assert module.class_names == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"][: len(module.class_names)]
    assert [each.used for each in soup.ingredients] == [True] * 3
    by_folder = {each.folder: each for each in soup.ingredients}
    for folder in folders(sweep):
        # as the run itself has measured
        assert by_folder[folder].test == pytest.approx(results(folder)["average_accuracy"])
        rate = float(by_folder[folder].name.partition("lr=")[2].partition(")")[0])
        assert rate == results(folder)["config"]["optimizer"]["lr"]


def test_a_greedy_soup_is_no_worse_than_its_best_ingredient(sweep: Path, tmp_path: Path):
    soup = cook([*folders(sweep)], tmp_path / "soup.ckpt", how="greedy")
    best = max(soup.ingredients, key=lambda each: each.validation or 0)
    assert best.used
    assert best.tried == best.validation
    assert (soup.validation or 0) >= (best.validation or 0)
    untrained = min(soup.ingredients, key=lambda each: each.validation or 0)
    assert not untrained.used
    used = [read_model(each.folder)["state_dict"] for each in soup.ingredients if each.used]
    written = read_model(tmp_path / "soup.ckpt")["state_dict"]
    assert all(torch.allclose(value, average_states(used)[name]) for name, value in written.items())
    assert torch.load(tmp_path / "soup.ckpt", weights_only=True)["soup"] == {"how": "greedy", "of": len(used)}


def test_the_command_prints_its_ingredients(sweep: Path, call: Call):  # noqa: F811
    done = call("soup", str(sweep), "--how", "greedy", "--out", "made/soup.ckpt")
    assert done.code == 0, done.err
    assert "greedy soup: accuracy, mean over tasks" in done.out
    assert done.out.count("lr=") == 3
    assert "soup: made/soup.ckpt" in done.out
    assert Path("made/soup.ckpt").is_file()


def changed(sweep: Path, target: Path, **keys: Any) -> Path:
    """A copy of a run whose results say something else."""
    shutil.copytree(folders(sweep)[0], target)
    (target / "results.json").write_text(json.dumps({**results(target), **keys}))
    return target


def test_what_cannot_be_averaged_is_refused(sweep: Path, tmp_path: Path):
    one, out = folders(sweep)[0], tmp_path / "soup.ckpt"
    with pytest.raises(InputError, match=r"1 finished run\(s\); expected two or more. HINT: give a sweep's folder"):
        cook([one], out)
    with pytest.raises(InputError, match=r"stream='other' in .*; expected runs of one stream. HINT"):
        cook([one, changed(sweep, tmp_path / "a", stream="other")], out)
    other = changed(sweep, tmp_path / "b")
    model = torch.load(other / "model.ckpt", weights_only=True)
    weights = dict(model["state_dict"])
    torch.save({**model, "state_dict": {**weights, "head.bias": torch.zeros(3)}}, other / "model.ckpt")
    with pytest.raises(
        InputError, match=r"another architecture in .* \(head.bias is .*\); expected models of one arch"
    ):
        cook([one, other], out)
    model["hyper_parameters"]["class_names"] = ["9", "8"]
    torch.save(model, other / "model.ckpt")
    with pytest.raises(
        InputError, match=r"classes \['9', '8'\] in .*; expected the same classes in the same order. HINT"
    ):
        cook([one, other], out)
    with pytest.raises(InputError, match=r"how='best'; expected 'uniform' or 'greedy'. HINT: --how greedy"):
        cook([sweep], out, how="best")  # type: ignore[arg-type]
    (other / "model.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(
        InputError, match=r"model.ckpt' cannot be read .*; expected a Lightning checkpoint, or the folder"
    ):
        cook([one, other], out)
    assert not out.exists()


def test_validation_data_that_somebody_was_trained_on_do_not_choose(sweep: Path, tmp_path: Path):
    config = results(folders(sweep)[0])["config"]
    config["stream"]["seed"] = 7
    other = changed(sweep, tmp_path / "other", config=config)
    with pytest.raises(
        InputError, match=r"a greedy soup of runs with different validation splits; .* HINT: sweep with one"
    ):
        cook([folders(sweep)[1], other], tmp_path / "soup.ckpt", how="greedy")
    soup = cook([folders(sweep)[1], other], tmp_path / "soup.ckpt")
    assert soup.validation is None
    assert soup.test is not None
    assert soup.notes == ["the runs split training and validation data differently: validation is not shown"]


# two checkpoints ----------------------------------------------------------------------------------------------------


def test_between_two_checkpoints(sweep: Path, call: Call):  # noqa: F811
    a, b = folders(sweep)[:2]
    done = call("interpolate", str(a), str(b / "model.ckpt"), "--alpha", "0.25", "--out", "between.ckpt")
    assert (done.code, done.out) == (0, "model: between.ckpt\n"), done.err
    module = FineTuningModule.load_from_checkpoint("between.ckpt", weights_only=True)
    expected = interpolate(read_model(a)["state_dict"], read_model(b)["state_dict"], 0.25)
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


def test_lightning_checkpoints_of_any_module_and_a_head_that_has_grown(tmp_path: Path):
    torch.save({"state_dict": {"w": torch.zeros(2), "n": torch.tensor(1)}, "epoch": 3}, tmp_path / "a.ckpt")
    after = {"w": torch.ones(3), "n": torch.tensor(2)}
    torch.save({"state_dict": after, "optimizer_states": [{"lr": 1}]}, tmp_path / "b.ckpt")
    interpolate_checkpoints(tmp_path / "a.ckpt", tmp_path / "b.ckpt", 0.5, tmp_path / "c.ckpt")
    made = torch.load(tmp_path / "c.ckpt", weights_only=True)
    assert made["state_dict"]["w"].tolist() == [0.5, 0.5, 1.0]
    assert made["interpolation"] == {"alpha": 0.5}
    assert "optimizer_states" not in made


def test_two_files_that_do_not_fit_are_refused(tmp_path: Path, call: Call):  # noqa: F811
    def save(name: str, state: Any, classes: Any = None) -> str:
        hparams = {"hyper_parameters": {"class_names": classes}} if classes else {}
        torch.save({"state_dict": state, **hparams}, tmp_path / name)
        return str(tmp_path / name)

    a, b = save("a", {"w": torch.ones(2)}, ["cat", "dog"]), save("b", {"w": torch.ones(2)}, ["dog", "cat"])
    assert "classes ['cat', 'dog'] before, ['dog', 'cat'] after" in call("interpolate", a, b, "--out", "c").error
    assert "nothing in " in call("interpolate", a, save("d", {"v": torch.ones(2)}), "--out", "c").error
    assert "alpha=2.0; expected a number from 0 to 1" in call("interpolate", a, a, "--alpha", "2", "--out", "c").error
    assert "no such file" in call("interpolate", a, "nowhere", "--out", "c").error
    torch.save([1], tmp_path / "list")
    assert "without a state_dict" in call("interpolate", a, str(tmp_path / "list"), "--out", "c").error
    assert "--out" in call("interpolate", a, b).error
