"""What pretrained weights expect of images, and that a stream of images follows it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from PIL import Image

from lightning_cl.errors import InputError
from lightning_cl.finetuning import PretrainedInputs, TorchvisionBackbone, pretrained_inputs
from lightning_cl.streams.folders import ResizeAndCrop
from tests.conf.test_configs import composed, values

IMAGENET = PretrainedInputs(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 50, 40, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        (tmp_path / "cb"[i % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "cb"[i % 2] / f"{i}.png")
    return tmp_path


def test_torchvision() -> None:
    assert TorchvisionBackbone.inputs_of("resnet18", "DEFAULT") == IMAGENET
    assert TorchvisionBackbone.inputs_of("resnet18", "ResNet18_Weights.IMAGENET1K_V1") == IMAGENET
    assert TorchvisionBackbone.inputs_of("resnet18", "some/file.pth") == IMAGENET
    assert TorchvisionBackbone.inputs_of("resnet18") == PretrainedInputs()
    assert TorchvisionBackbone.inputs_of("efficientnet_v2_s", "DEFAULT").size == 384
    with pytest.raises(InputError, match="weights='V9' of 'resnet18'"):
        TorchvisionBackbone.inputs_of("resnet18", "V9")
    with pytest.raises(InputError, match="model='resnet1'"):
        TorchvisionBackbone.inputs_of("resnet1", "DEFAULT")


@pytest.mark.parametrize("section", [{}, {"_target_": "package.Backbone"}, {"_target_": "lightning_cl.finetuning.MLP"}])
def test_other_backbones_expect_nothing(section: dict[str, Any]) -> None:
    assert pretrained_inputs(section) == PretrainedInputs()


def test_a_stream_of_images_follows_the_weights(folder: Path) -> None:
    where = ["stream=image_folder", f"stream.dataset.path={folder}", "stream.n_tasks=1", "validation_fraction=0"]
    named = ["model=torchvision", "model.backbone.weights=IMAGENET1K_V1"]
    section = values(composed(*where, *named))["stream"]
    assert (section["dataset"]["size"], section["dataset"]["interpolation"]) == (224, "bilinear")
    assert section["normalize"] == IMAGENET.normalize
    small = instantiate(composed(*where, *named, "stream.dataset.size=16").stream, _convert_="all")
    plain = instantiate(composed(*where, "stream.dataset.size=16").stream, _convert_="all")
    x, raw = (stream[0].train.batch(torch.arange(4))[0] for stream in (small, plain))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in section["normalize"])
    assert torch.equal(x, (raw - mean) / std)
    assert values(composed(*where))["stream"]["normalize"] is None
    assert values(composed(*where, *named, "stream.normalize=null"))["stream"]["normalize"] is None
    cubic = values(composed(*where, "model=efficientnet_lite0", "model.backbone.weights=a.pth"))["stream"]
    assert (cubic["dataset"]["interpolation"], cubic["normalize"]) == ("bicubic", [[0.5] * 3, [0.5] * 3])


def test_the_transform_is_what_the_stream_does(folder: Path) -> None:
    inputs = PretrainedInputs(16, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bicubic")
    transform = pickle.loads(pickle.dumps(inputs.transform()))
    config = composed(
        "stream=image_folder",
        f"stream.dataset.path={folder}",
        "stream.n_tasks=1",
        "stream.dataset.size=16",
        "stream.dataset.interpolation=bicubic",
        "stream.normalize=[[0.1,0.2,0.3],[0.5,0.6,0.7]]",
    )
    data: Any = instantiate(config.stream, _convert_="all")[0].train
    for i in range(len(data)):
        with Image.open(data.dataset.samples[int(data.indices[i])][0]) as image:
            assert torch.allclose(transform(image), data.batch(torch.tensor([i]))[0][0], atol=1e-6)


def test_interpolation() -> None:
    image = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    assert np.any(np.asarray(ResizeAndCrop(7)(image)) != np.asarray(ResizeAndCrop(7, "bicubic")(image)))
    with pytest.raises(InputError, match=r"interpolation='cubic'; expected one of nearest, .*bicubic"):
        ResizeAndCrop(7, "cubic")
