import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning import FineTuningModule, TorchvisionBackbone


def build(seed: int = 0, **options: Any) -> TorchvisionBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return TorchvisionBackbone(options.pop("input_shape", (3, 32, 32)), **options)


@pytest.mark.parametrize(
    ("model", "width"),
    [
        ("resnet18", 512),
        ("mobilenet_v3_small", 1024),
        ("efficientnet_b0", 1280),
        ("convnext_tiny", 768),
        ("vit_b_16", 768),
    ],
)
def test_features_stand_before_the_classifier(model: str, width: int) -> None:
    backbone = build(model=model).eval()
    assert backbone.feature_dim == width
    assert backbone.training is False
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    features = backbone(x)
    assert features.shape == (2, width)
    linear = [name for name, part in backbone.network.named_modules() if isinstance(part, nn.Identity)]
    head = nn.Linear(width, 7)
    backbone.network.set_submodule(linear[-1], head)  # put a classifier back where it was
    with torch.no_grad():
        assert torch.allclose(backbone.network(x), head(features), atol=1e-5)


def test_dropout_before_the_classifier_is_kept() -> None:
    backbone = build(model="efficientnet_b0")
    assert isinstance(backbone.network.classifier[0], nn.Dropout)
    assert backbone.training
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.eval().network.classifier.train()
        assert (backbone(torch.randn(4, 3, 32, 32)) == 0).float().mean() > 0.1  # p = 0.2


def test_grey_images_are_repeated() -> None:
    backbone = build(input_shape=(1, 32, 32)).eval()
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(backbone(x), backbone(x.repeat(1, 3, 1, 1)))


def test_small_images_keep_their_resolution_longer() -> None:
    small, usual = build(small_images=True), build()
    assert small.network.conv1.stride == (1, 1)
    assert small.network.conv1.kernel_size == (3, 3)
    seen: list[Any] = []
    for backbone in (small, usual):
        backbone.network.layer1.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[2:])))
        backbone(torch.zeros(2, 3, 32, 32))
    assert seen == [(32, 32), (8, 8)]
    with pytest.raises(InputError, match=r"small_images=True with model='mobilenet_v3_small'; expected a ResNet"):
        build(model="mobilenet_v3_small", small_images=True)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("saved_as", ["torchvision", "state_dict", "lightning"])
def test_local_weights_come_with_a_head_of_any_size(tmp_path: Path, saved_as: str, small: bool) -> None:
    first = build(seed=1, small_images=small)
    state: Any = dict(first.network.state_dict())
    state.update({"fc.weight": torch.zeros(5, 512), "fc.bias": torch.zeros(5)})
    if saved_as == "state_dict":
        state = {"state_dict": state}
    elif saved_as == "lightning":
        state = {"state_dict": {f"backbone.network.{key}": value for key, value in state.items()}, "epoch": 3}
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    second = build(seed=2, weights=str(path), small_images=small)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert "weights" not in second.spec  # a reload needs no such file


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(build(model="mobilenet_v3_small").network.state_dict(), path)
    with pytest.raises(InputError, match=r"without \d+ entries of the model, such as .* HINT: check model"):
        build(weights=str(path))
    torch.save(build(small_images=True).network.state_dict(), path)
    with pytest.raises(InputError, match=r"without 1 entries of the model, such as 'conv1.weight'"):
        build(weights=str(path))
    path.write_bytes(b"no weights")
    with pytest.raises(InputError, match=r"cannot be read .*; expected a state dict of tensors"):
        build(weights=str(path))


def test_missing_weights_file() -> None:
    with pytest.raises(InputError, match=r"weights='nowhere\.pth'; expected an existing file"):
        build(weights="nowhere.pth")


def test_unknown_names() -> None:
    with pytest.raises(InputError, match=r"model='resnet1'; expected a torchvision .* HINT: did you mean resnet1"):
        build(model="resnet1")
    with pytest.raises(InputError, match=r"weights='V9' of 'resnet18'; expected DEFAULT, IMAGENET1K_V1, a path"):
        build(weights="V9")


def test_weights_by_name_without_a_network_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # nothing is in the cache
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(InputError, match=r"cannot be downloaded .*no route to host.* HINT: give a local") as caught:
        build(weights="DEFAULT")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", ["googlenet", "inception_v3", "squeezenet1_1"])
def test_models_with_other_outputs_are_refused(model: str) -> None:
    with pytest.raises(InputError, match=f"model='{model}', with auxiliary outputs or no Linear classifier; expected"):
        build(model=model)


@pytest.mark.parametrize(
    ("model", "shape"),
    [("alexnet", (3, 8, 8)), ("vit_b_16", (3, 30, 30)), ("resnet18", (4, 32, 32)), ("resnet18", (64,))],
)
def test_images_that_do_not_fit_are_refused(model: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="input_shape="):
        build(model=model, input_shape=shape)


FAMILIES = ["alexnet", "densenet121", "efficientnet_v2_s", "mnasnet0_5", "mobilenet_v2", "resnext50_32x4d"]
FAMILIES += ["shufflenet_v2_x0_5", "swin_t", "swin_v2_t", "vgg11_bn", "wide_resnet50_2", "maxvit_t"]


@pytest.mark.parametrize("model", FAMILIES)
def test_the_last_linear_layer_of_each_family_is_its_classifier(model: str) -> None:
    """Looked at on the meta device, because only the structure matters (regnets cannot be built there)."""
    import torchvision

    with torch.device("meta"):
        network = torchvision.models.get_model(model)
    layers = [part for part in network.modules() if not list(part.children())]
    assert isinstance(layers[-1], nn.Linear)
    assert layers[-1].out_features == 1000
    assert not hasattr(network, "aux_logits")


def test_regnet() -> None:
    assert build(model="regnet_y_400mf").feature_dim == 440


def test_a_module_with_it_reloads_from_its_checkpoint(tmp_path: Path) -> None:
    from tests.finetuning.examples import trainer

    model = FineTuningModule(
        lambda shape: build(input_shape=shape, small_images=True), input_shape=(1, 8, 8), class_names=["a", "b"]
    )
    run = trainer()
    run.strategy.connect(model)
    run.save_checkpoint(tmp_path / "model.ckpt")
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model.eval()(x), again(x))
