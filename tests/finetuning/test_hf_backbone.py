"""Image backbones of HF transformers, built from configurations and local folders."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.finetuning import FineTuningModule, HFImageBackbone, PretrainedInputs, replace_head
from tests.finetuning.examples import trainer
from tests.finetuning.test_new_head import SMALL

transformers = pytest.importorskip("transformers")
CONFIGS: dict[str, tuple[dict[str, Any], int]] = {
    "vit": ({**SMALL, "patch_size": 8}, 16),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, 16),
    "convnext": ({"hidden_sizes": [8, 8, 8, 12], "depths": [1, 1, 1, 1]}, 12),
    "swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}, 16),
    "dinov2": ({"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}, 32),
}


def build(model: str = "vit", **options: Any) -> HFImageBackbone:
    config = options.pop("config", CONFIGS[model][0] if model in CONFIGS else None)
    return HFImageBackbone(options.pop("input_shape", (3, 32, 32)), model, config=config, **options)


def saved(folder: Path, **options: Any) -> Any:
    """A model with three classes in a local folder, as the library writes it."""
    config = transformers.CONFIG_MAPPING["vit"](**CONFIGS["vit"][0], image_size=32, **options)
    model = replace_head(transformers.AutoModelForImageClassification.from_config(config), ["a", "b", "c"]).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("model", CONFIGS)
def test_features_are_what_the_classifier_reads(model: str) -> None:
    backbone = build(model).eval()
    assert backbone.feature_dim == CONFIGS[model][1]
    x = torch.randn(2, 3, 32, 32)
    features = backbone(x)
    assert features.shape == (2, CONFIGS[model][1])
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    kind = transformers.AutoModelForImageClassification
    whole = kind.from_config(transformers.CONFIG_MAPPING[model](**CONFIGS[model][0], image_size=32)).eval()
    classifier = [part for part in whole.modules() if isinstance(part, torch.nn.Linear)][-1]
    assert parameters == sum(p.numel() for p in whole.parameters()) - sum(p.numel() for p in classifier.parameters())
    whole.load_state_dict(backbone.network.state_dict(), strict=False)
    assert torch.equal(whole(x).logits, classifier(features))


def test_grey_images_are_repeated() -> None:
    backbone = build(input_shape=(1, 32, 32)).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(backbone(x), backbone(x.repeat(1, 3, 1, 1)))


@pytest.mark.parametrize("weights", ["DEFAULT", "model.safetensors"])
def test_a_local_folder(tmp_path: Path, weights: str) -> None:
    whole = saved(tmp_path)
    given = "DEFAULT" if weights == "DEFAULT" else str(tmp_path / weights)
    backbone = build(str(tmp_path), weights=given).eval()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(whole.classifier(backbone(x)), whole(x).logits)
    random = build(str(tmp_path)).eval()
    assert not torch.equal(random(x), backbone(x))
    with pytest.raises(InputError, match=r"input_shape=\[3, 64, 64\] with model=.*expected images of a size"):
        build(str(tmp_path), weights="DEFAULT", input_shape=(3, 64, 64))


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model=.*expected a config.json with a model_type"):
        build(str(tmp_path), weights="DEFAULT")


def test_half_precision_weights_become_fp32(tmp_path: Path) -> None:
    saved(tmp_path).half().save_pretrained(tmp_path)
    backbone = build(str(tmp_path), weights="DEFAULT")
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}


def test_a_module_with_it_reloads_without_the_folder(tmp_path: Path) -> None:
    saved(tmp_path / "pretrained")
    backbone = build(str(tmp_path / "pretrained"), weights="DEFAULT", input_shape=(1, 32, 32))
    model = FineTuningModule(backbone, class_names=["a", "b"])
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    for file in (tmp_path / "pretrained").iterdir():
        file.unlink()
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), again(x))


def test_what_the_weights_expect(tmp_path: Path) -> None:
    assert HFImageBackbone.inputs_of("vit") == PretrainedInputs()
    saved(tmp_path)
    with pytest.raises(InputError, match=r"which does not say how its images .* HINT: give stream.normalize"):
        HFImageBackbone.inputs_of(str(tmp_path), "DEFAULT")
    file = tmp_path / "preprocessor_config.json"
    settings: dict[str, Any] = {
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 2, 3],
        "resample": 3,
    }
    file.write_text(json.dumps({**settings, "image_processor_type": "ViTImageProcessor"}))
    expected = PretrainedInputs(32, (0.1, 0.2, 0.3), (1.0, 2.0, 3.0), "bicubic")
    assert HFImageBackbone.inputs_of(str(tmp_path), "DEFAULT") == expected
    file.write_text(json.dumps({"size": {"shortest_edge": 40}, "crop_size": 24, "do_normalize": False}))
    assert HFImageBackbone.inputs_of(str(tmp_path), "DEFAULT") == PretrainedInputs(24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"model": "vitt"},
            r"model='vitt'; expected a hub name, a local folder, or an .* HINT: did you mean",
        ),
        ({"weights": "V2"}, r"weights='V2' of 'vit'; expected DEFAULT, a path, or null"),
        ({"weights": "DEFAULT"}, r"weights='DEFAULT' of 'vit'; expected a model, not an architecture"),
        ({"model": "bert", "config": {**SMALL}}, r"model='bert' \(.*\); expected a model that classifies images"),
        ({"input_shape": (3, 32)}, r"input_shape=\[3, 32\]; expected"),
        ({"weights": "nowhere.safetensors"}, r"weights='nowhere.safetensors'; expected an existing file"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**options)


def test_weights_by_name_without_a_network_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no name service")

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for call in (build, HFImageBackbone.inputs_of):
        arguments: dict[str, Any] = {"model": "nobody/has-this-model", "weights": "DEFAULT"}
        with pytest.raises(InputError) as caught:
            call(**arguments)
        expected = "model='nobody/has-this-model', neither a path nor in the cache; expected a network connection"
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "Retrying" not in capfd.readouterr().err
