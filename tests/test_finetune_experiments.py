"""Fine-tuning from the command line: a source model, an image folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl import FineTuningModule
from lightning_cl.report.finding import find
from tests.command_line import Call, call

__all__ = ["call"]
SMALL = ["hydra.run.dir=out", "model.backbone.hidden=[16]", "trainer.max_epochs=2", "progress_bar=false"]
SOURCE = "source=['stream.dataset.per_class=30','stream.dataset.classes=[0,1,2]','trainer.max_epochs=3']"


def results(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "results.json").read_text())
    assert isinstance(found, dict)
    return found


def classes(folder: Path) -> list[str]:
    return FineTuningModule.load_from_checkpoint(folder / "model.ckpt", weights_only=True).class_names


def backbone(folder: Path) -> dict[str, torch.Tensor]:
    net = FineTuningModule.load_from_checkpoint(folder / "model.ckpt", weights_only=True)
    return dict(net.backbone.state_dict())


def same(one: Path, two: Path) -> bool:
    first, second = backbone(one), backbone(two)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_digits_side_by_side(call: Call, tmp_path: Path):
    outcome = call("experiment=finetune_digits", *SMALL, SOURCE)
    assert (outcome.code, outcome.err) == (0, "")
    out = tmp_path / "out"
    found = results(out)
    assert (found["method"], found["config"]["model"]["backbone"]["hidden"]) == ("lp_ft", [16])
    assert set(found["reference_methods"]) == {"linear_probe", "naive", "random_weights"}
    for method in ("lp_ft", "linear_probe", "naive", "random_weights"):
        assert any(method in line.split() for line in outcome.out.splitlines())
    assert "lower bound" not in outcome.out  # of what is forgotten: nothing, in a single task
    assert classes(out / "source") == ["0", "1", "2"]
    assert classes(out) == ["5", "6", "7", "8", "9"]
    # a probe keeps the source's features; who starts from random weights is the only one that does not come from them
    assert same(out / "source", out / "references" / "linear_probe")
    assert not same(out / "source", out / "references" / "naive")
    assert not same(out / "references" / "naive", out / "references" / "random_weights")
    # the same command finds everything done
    before = results(out / "source")
    assert call("experiment=finetune_digits", *SMALL, SOURCE).code == 0
    assert results(out / "source") == before
    assert [run.folder for run in find([out])[0]] == [out]  # what it started from is no run beside it


def test_a_source_is_a_list_of_overrides(call: Call):
    outcome = call("experiment=finetune_digits", *SMALL, "source=stream.n_tasks")
    assert outcome.code == 2
    assert "HINT" in outcome.err


@pytest.fixture
def photos(tmp_path: Path) -> str:
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            noise = torch.randint(0, 60, (40, 48, 3), generator=rng)
            noise[..., number] += 150
            Image.fromarray(noise.byte().numpy()).save(tmp_path / "photos" / name / f"{i}.png")
    return "stream.dataset.path=photos"


def test_image_folder(photos: str, call: Call, tmp_path: Path):
    small = ["model.backbone.model=resnet18", "model.backbone.weights=null", "stream.dataset.size=32"]
    outcome = call(
        "experiment=finetune_image", photos, *small, "trainer.max_epochs=5", "hydra.run.dir=out", "batch_size=8"
    )
    assert (outcome.code, outcome.err) == (0, "")
    found = results(tmp_path / "out")
    assert (found["method"], found["status"]) == ("lp_ft", "finished")
    assert classes(tmp_path / "out") == ["cat", "dog"]
    assert found["accuracy_matrix"][0][0] >= 0.5


def test_weights_from_a_file(photos: str, call: Call, tmp_path: Path):
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    given = ["model.backbone.model=resnet18", "model.backbone.weights=weights.pth", "stream.dataset.size=32"]
    outcome = call("experiment=finetune_image", photos, *given, "trainer.max_epochs=2", "hydra.run.dir=out")
    assert (outcome.code, outcome.err) == (0, "")


def test_weights_that_cannot_be_had(photos: str, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr("socket.getaddrinfo", _no_network)
    outcome = call("experiment=finetune_image", photos, "hydra.run.dir=out")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "HINT: give a local file: model.backbone.weights=FILE" in outcome.err


def _no_network(*_: Any, **__: Any) -> Any:
    raise OSError("no network")
