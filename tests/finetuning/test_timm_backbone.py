"""Backbones of timm: features, sizes, weights from a file, weights by name without a network."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.finetuning import FineTuningModule, PretrainedInputs, TimmBackbone, pretrained_inputs
from tests.finetuning.examples import trainer

timm = pytest.importorskip("timm")
LITE = {"efficientnet_lite0": 1280, "mobilenetv3_small_050": 1024, "resnet18": 512, "vit_tiny_patch16_224": 192}


def build(model: str = "mobilenetv3_small_050", seed: int = 0, **options: Any) -> TimmBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TimmBackbone(options.pop("input_shape", (3, 32, 32)), model, **options)


@pytest.mark.parametrize("model", LITE)
def test_features_stand_before_the_classifier(model: str) -> None:
    backbone = build(model).eval()
    assert backbone.feature_dim == LITE[model]
    x = torch.randn(2, 3, 32, 32)
    expected = backbone.network.forward_head(backbone.network.forward_features(x), pre_logits=True)  # type: ignore
    assert torch.equal(backbone(x), expected)
    assert build(model).training


def test_grey_images_are_repeated() -> None:
    backbone = build(input_shape=(1, 32, 32)).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(backbone(x), backbone(x.repeat(1, 3, 1, 1)))


def test_a_module_with_it_reloads_from_its_checkpoint(tmp_path: Path) -> None:
    model = FineTuningModule(lambda shape: build(input_shape=shape), input_shape=(1, 32, 32), class_names=["a", "b"])
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), again(x))


def test_weights_from_a_file_with_any_head(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    whole = timm.create_model("mobilenetv3_small_050", num_classes=7)
    torch.save({"state_dict": {f"module.{key}": value for key, value in whole.state_dict().items()}}, path)
    backbone = build(weights=str(path))
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(whole.eval().classifier(backbone.eval()(x)), whole(x))
    assert "weights" not in backbone.spec
    torch.save({f"net_{key}": value for key, value in whole.state_dict().items()}, path)
    with pytest.raises(InputError, match=r"without \d+ entries of the model, .*HINT: .* rename="):
        build(weights=str(path))
    assert torch.equal(build(weights=str(path), rename={"^net_": ""}).eval()(x), backbone(x))


def test_names_of_efficientnet_pytorch_are_mapped() -> None:
    """The config has a map for files of ImageNet weights that go by the other names."""
    from lightning_cl.finetuning import load_weights
    from tests.conf.test_configs import composed, values

    rename = values(composed("model=efficientnet_lite0"))["model"]["backbone"]["rename"]
    names = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    inside = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
    inside |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    first = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    old = timm.create_model("tf_efficientnet_lite0")
    blocks = [f"{stage}.{i}" for stage, part in enumerate(old.blocks) for i in range(len(part))]
    saved = {}
    for key, value in old.state_dict().items():
        parts = key.split(".")
        if parts[0] == "blocks":
            number = blocks.index(".".join(parts[1:3]))
            parts = ["_blocks", str(number), (inside if number else first)[parts[3]], *parts[4:]]
        else:
            parts[0] = names[parts[0]]
        saved[".".join(parts)] = value
    new = timm.create_model("tf_efficientnet_lite0")
    assert load_weights(new, saved, rename=rename).exact
    assert all(torch.equal(value, old.state_dict()[key]) for key, value in new.state_dict().items())


def test_what_the_weights_expect() -> None:
    vit = PretrainedInputs(224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert TimmBackbone.inputs_of("vit_tiny_patch16_224", "DEFAULT") == vit
    assert TimmBackbone.inputs_of("vit_tiny_patch16_224", "some/file.pth") == vit
    assert TimmBackbone.inputs_of("vit_tiny_patch16_224") == PretrainedInputs()
    tagged = TimmBackbone.inputs_of("vit_base_patch16_clip_224", "openai")
    assert tagged.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert TimmBackbone.inputs_of("vit_tiny_patch16_384", "DEFAULT").size == 384
    section = {
        "_target_": "lightning_cl.finetuning.TimmBackbone",
        "model": "vit_tiny_patch16_224",
        "weights": "DEFAULT",
    }
    assert pretrained_inputs(section) == vit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "resnet188"}, r"model='resnet188'; expected a model of timm. HINT: did you mean resnet18"),
        ({"model": "qqqqqqqq"}, r"HINT: timm.list_models"),
        ({"model": "resnet18", "weights": "v9"}, r"weights='v9' of 'resnet18'; expected DEFAULT, .*a path, or null"),
        ({"model": "resnet18.v9"}, r"weights='v9' of 'resnet18'; expected DEFAULT"),
        ({"model": "test_vit", "input_shape": (3, 31, 31)}, r"input_shape=\[3, 31, 31\] with model='test_vit"),
        ({"model": "resnet18", "input_shape": (4, 32, 32)}, r"input_shape=\[4, 32, 32\]; expected \(1 or 3"),
        ({"weights": "nowhere.pth"}, r"weights='nowhere.pth'; expected an existing file"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(**options)


def test_weights_by_name_without_a_network_are_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError("no name service")

    from huggingface_hub import constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        build("resnet18", weights="DEFAULT")
    said = str(caught.value)
    assert said.startswith("weights='DEFAULT' of model='resnet18', neither a path nor in the cache; expected a network")
    assert said.endswith("to download it. HINT: give a local file: model.backbone.weights=FILE, or null")
    assert time.monotonic() - start < 5  # no retries
    assert "Retrying" not in capfd.readouterr().err
    assert not constants.HF_HUB_OFFLINE
