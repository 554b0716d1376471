"""Depth groups: complete, in order, of whole blocks, and few, for models of every provenance."""

from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn

from lightning_cl import depth_groups
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP, FineTuningModule, TorchvisionBackbone
from lightning_cl.finetuning.depth_groups import DepthGroup
from tests.finetuning.models import Block, Reversed, Tokens, bert, on_meta, plain_mlp, timm_model, torchvision_model

BLOCKS = {
    "BasicBlock", "Bottleneck", "EncoderBlock", "CNBlock", "MBConv", "InvertedResidual", "BertLayer", "RobertaLayer",
    "Block", "_DenseLayer", "Inception", "Fire", "SwinTransformerBlock", "DepthwiseSeparableConv", "ConvNeXtBlock",
    "MaxVitLayer", "ResBottleneckBlock", "BertEmbeddings", "T5Block", "PatchMerging", "BasicConv2d",
    "ResNetBottleNeckLayer", "SwinLayer", "ConvNextLayer", "ViTLayer", "MobileNetV2InvertedResidual",
}  # fmt: skip


class Wrapped(LightningModule):
    """As people wrap a model."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def check(model: nn.Module, groups: list[DepthGroup], most: int = 8) -> None:
    """Every parameter once, whole modules, no block in two groups, sizes."""
    assert 0 < len(groups) <= most
    named = dict(model.named_parameters())
    assert Counter(name for group in groups for name in group.parameters) == Counter(named.keys())
    group_of = {name: group.name for group in groups for name in group.parameters}
    by_id = {id(parameter): group_of[name] for name, parameter in named.items()}
    times = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for name, part in model.named_modules():
        if type(part).__name__ in BLOCKS:
            inside = {by_id[id(p)] for p in part.parameters() if times[id(p)] == 1}
            assert len(inside) <= 1, (name, inside)
    for group in groups:
        assert group.parameters
        assert group.size == sum(named[name].numel() for name in group.parameters)
        for name in group.modules:
            part = model.get_submodule(name)
            own = {by_id[id(p)] for p in part.parameters() if times[id(p)] == 1}
            assert own <= {group.name}
    whole = {id(p) for group in groups for m in group.modules for p in model.get_submodule(m).parameters()}
    beside = [name for name, p in named.items() if id(p) not in whole]
    assert all(model.get_submodule(name.rpartition(".")[0])._modules for name in beside)


def names(groups: list[DepthGroup]) -> list[str]:
    return [group.name for group in groups]


def modules(groups: list[DepthGroup]) -> list[tuple[str, ...]]:
    return [group.modules for group in groups]


def stages(n: int) -> list[str]:
    return ["stem", *(f"stage{i}" for i in range(1, n + 1)), "head"]


@pytest.mark.parametrize(
    ("model", "n"),
    [
        *[("resnet18", 4), ("resnet50", 4), ("vit_b_16", 6), ("convnext_tiny", 4), ("efficientnet_b0", 6)],
        *[("mobilenet_v2", 6), ("mobilenet_v3_small", 6), ("densenet121", 4), ("swin_t", 4), ("vgg11", 6)],
        *[("alexnet", 6), ("squeezenet1_0", 6), ("shufflenet_v2_x1_0", 3), ("googlenet", 6), ("mnasnet1_0", 6)],
        ("maxvit_t", 4),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_torchvision(model: str, n: int):
    network = torchvision_model(model)
    groups = depth_groups(network)
    check(network, groups)
    assert names(groups) == stages(n)
    last = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    if model != "squeezenet1_0":  # its classifier is a convolution
        assert f"{last[-1]}.weight" in groups[-1].parameters
    wrapped = Wrapped(model=network)
    prefixed = [tuple(f"model.{name}" for name in group.modules) for group in groups]
    assert modules(depth_groups(wrapped)) == prefixed


def test_what_the_groups_of_a_resnet_and_a_vit_hold():
    resnet = depth_groups(torchvision_model("resnet18"))
    assert modules(resnet) == [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",), ("fc",)]
    assert resnet[0].parameters == ("conv1.weight", "bn1.weight", "bn1.bias")
    vit = depth_groups(torchvision_model("vit_b_16"))
    assert vit[0].modules == ("conv_proj",)
    assert {"class_token", "encoder.pos_embedding"} < set(vit[0].parameters)
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(12)]
    assert [m for group in vit[1:-1] for m in group.modules] == [*layers, "encoder.ln"]
    assert [len(group.modules) for group in vit[1:-1]] == [2, 2, 2, 2, 2, 3]
    assert vit[-1].modules == ("heads",)
    swin = depth_groups(torchvision_model("swin_t"))  # what halves the resolution leads to a stage
    assert modules(swin)[1:3] == [("features.1",), ("features.2", "features.3")]


@pytest.mark.parametrize(
    ("model", "n"),
    [
        *[("resnet18", 4), ("resnet50", 4), ("vit_tiny_patch16_224", 6), ("tf_efficientnet_lite0", 6)],
        *[("convnext_tiny", 4), ("swin_tiny_patch4_window7_224", 4), ("mobilenetv3_small_100", 6)],
        *[("deit_tiny_distilled_patch16_224", 6), ("regnety_002", 4)],
    ],
)
def test_timm(model: str, n: int):
    network = timm_model(model)
    groups = depth_groups(network)
    check(network, groups)
    assert names(groups) == stages(n)
    assert groups[-1].modules[0] in ("head", "fc", "classifier")


def test_both_heads_of_a_distilled_vit_are_head():
    assert depth_groups(timm_model("deit_tiny_distilled_patch16_224"))[-1].modules == ("head", "head_dist")


@pytest.mark.parametrize("model", ["levit_128s", "levit_conv_128s"])
def test_two_heads_of_a_class_of_their_own_are_no_blocks(model: str):
    network = timm_model(model)
    groups = depth_groups(network)
    check(network, groups)
    assert names(groups) == stages(4)
    assert groups[-1].modules == ("head", "head_dist")


def test_heads_of_a_class_that_is_used_elsewhere_too():
    class Normed(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.norm, self.last = nn.LayerNorm(4), last

    def network(last: nn.Module) -> nn.Module:
        parts = {"embed": nn.Linear(6, 4), "mix": Normed(nn.Linear(4, 4)), "classifier": Normed(last)}
        return nn.ModuleDict({**parts, "projection": nn.Linear(4, 2)})

    assert depth_groups(network(nn.Linear(4, 2)))[-1].modules == ("classifier",)
    # with a weight of another kind it is a block
    assert depth_groups(network(nn.Conv1d(4, 2, 1)))[-1].modules == ("projection",)


def test_transformers():
    groups = depth_groups(bert())
    check(bert(), groups)
    assert names(groups) == stages(6)
    assert groups[0].modules == ("bert.embeddings",)
    assert groups[-2].modules[-1] == "bert.pooler"
    assert groups[-1].modules == ("classifier",)
    roberta = depth_groups(bert(kind="Roberta"))
    check(bert(kind="Roberta"), roberta)
    assert roberta[-1].parameters == tuple(
        f"classifier.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")
    )
    assert names(depth_groups(bert(layers=1))) == ["stem", "stage1", "head"]  # a single layer is a block too


@pytest.mark.parametrize("wrapped", [False, True])
def test_all_that_is_new_beside_a_transformers_base_is_the_head(wrapped: bool):
    transformers = pytest.importorskip("transformers")
    config = transformers.DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, vocab_size=50)
    model = transformers.DistilBertForSequenceClassification(config)
    groups = depth_groups(Wrapped(net=model) if wrapped else model)
    start = "net." if wrapped else ""
    assert groups[-1].name == "head"
    assert groups[-1].modules == (f"{start}pre_classifier", f"{start}classifier")
    check(Wrapped(net=model) if wrapped else model, groups)
    # its base alone, and one with a language-model head, are as they were
    assert depth_groups(transformers.DistilBertForMaskedLM(config))[-1].parameters
    assert depth_groups(model.distilbert)[-1].parameters


@pytest.mark.parametrize(("kind", "n"), [("ResNet", 4), ("Swin", 4), ("ConvNext", 4), ("ViT", 6), ("MobileNetV2", 6)])
def test_transformers_for_images(kind: str, n: int):
    transformers = pytest.importorskip("transformers")
    build = getattr(transformers, f"{kind}ForImageClassification")
    model = on_meta(lambda: build(getattr(transformers, f"{kind}Config")()))
    groups = depth_groups(model)
    check(model, groups)
    assert names(groups) == stages(n)
    assert groups[-1].modules == ("classifier",)
    if n == 4:  # its own stages are whole
        assert [group.modules[0].rpartition(".")[2] for group in groups[1:5]] == ["0", "1", "2", "3"]


def test_encoder_and_decoder_are_cut_into_stages_and_a_tied_parameter_belongs_to_the_first():
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=4, num_heads=2, vocab_size=20)
    model = transformers.T5ForConditionalGeneration(config)
    groups = depth_groups(model)
    check(model, groups)
    assert groups[0].parameters[0] == "shared.weight"
    sides = [{name.split(".")[0] for name in group.parameters} for group in groups[1:]]
    assert sides == [{"encoder"}] * 3 + [{"decoder"}] * 4  # the head is the stem's embedding


def test_our_modules():
    mlp = FineTuningModule(MLP((1, 8, 8)), class_names=["a", "b"])
    assert modules(depth_groups(mlp)) == [("backbone.layers.1",), ("backbone.layers.3",), ("head",)]
    resnet = FineTuningModule(TorchvisionBackbone((3, 32, 32)), class_names=["a", "b"])
    check(resnet, depth_groups(resnet))
    assert names(depth_groups(resnet)) == stages(4)
    tasks: dict[str, Any] = {"class_names": list("abcd"), "tasks": [[0, 1], [2, 3]]}
    assert depth_groups(FineTuningModule(MLP((4,)), head="separate", **tasks))[-1].modules == ("head",)
    cosine = FineTuningModule(MLP((4,)), class_names=["a"], head_layer="cosine")
    assert depth_groups(cosine)[-1].modules == ("head",)
    assert depth_groups(FineTuningModule(MLP((4,))))[-1].modules == ("head",)  # no rows yet


def test_plain_sequential():
    groups = depth_groups(plain_mlp(3))
    assert modules(groups) == [("1", "2"), ("4", "5"), ("7",)]
    deep = depth_groups(plain_mlp(20))
    check(plain_mlp(20), deep)
    assert len(deep) == 8
    for group in deep[1:-1]:  # a norm stays with its layer
        assert len(group.modules) % 2 == 0
    assert names(depth_groups(plain_mlp(2))) == ["stem", "head"]
    assert depth_groups(nn.Linear(3, 2)) == [DepthGroup("head", (), ("weight", "bias"), 8)]


@pytest.mark.parametrize("most", [3, 4, 5, 6, 7, 8, 20])
@pytest.mark.parametrize("model", ["resnet18", "vit_b_16", "efficientnet_b0"])
def test_any_number_of_groups(model: str, most: int):
    network = torchvision_model(model)
    groups = depth_groups(network, max_groups=most)
    check(network, groups, most)
    assert len(groups) >= min(most, 6)


def test_each_block_on_request():
    groups = depth_groups(torchvision_model("resnet50"), max_groups=None)
    check(torchvision_model("resnet50"), groups, 99)
    assert len(groups) == 1 + (3 + 4 + 6 + 3) + 1
    assert modules(groups)[1] == ("layer1.0",)


def test_numbers_and_tokens_beside_modules():
    model = Tokens(blocks=2)
    groups = depth_groups(model)
    check(model, groups)
    assert names(groups) == ["stem", "stage1", "stage2", "head"]
    assert groups[0].parameters == ("token", "embed.weight", "embed.bias")
    assert groups[-1].parameters == ("temperature", "head.weight", "head.bias")
    assert groups[2].modules == ("blocks.1", "norm")


def test_a_single_block_among_others_is_whole():
    class Other(Block):
        pass

    class Third(Block):
        pass

    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Third()), nn.Sequential(Other(), Other()), nn.Linear(4, 2))
    assert modules(depth_groups(model)) == [("0",), ("1",), ("2.0",), ("2.1",), ("3",)]


def test_heads_of_attention_are_no_blocks():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList(Block() for _ in range(3))

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.mlp = Attention(), nn.Linear(4, 4)

    model = nn.Sequential(nn.Embedding(5, 4), nn.Sequential(*[Layer() for _ in range(9)]), nn.Linear(4, 2))
    groups = depth_groups(model)
    check(model, groups)
    assert [m for group in groups[1:-1] for m in group.modules] == [f"1.{i}" for i in range(9)]


def test_two_networks_of_a_class_are_taken_apart():
    pair = Wrapped(student=torchvision_model("resnet18"), teacher=torchvision_model("resnet18"))
    groups = depth_groups(pair)
    check(pair, groups)
    assert len(groups) == 8


def test_a_head_defined_first_is_found_by_its_name():
    model = Wrapped(classifier=nn.Linear(4, 2), backbone=nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert modules(depth_groups(model)) == [("backbone.0",), ("backbone.2",), ("classifier",)]


def test_a_wide_hidden_layer_of_a_classifier_is_no_head():
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.Flatten())
    model = Wrapped(features=convolutions, classifier=nn.Sequential(nn.Linear(800, 64), nn.ReLU(), nn.Linear(64, 10)))
    groups = depth_groups(model)
    assert modules(groups)[-2:] == [("classifier.0",), ("classifier.2",)]
    small = Wrapped(body=plain_mlp(9, 32), head=nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert modules(depth_groups(small))[-1] == ("head",)


def test_an_example_gives_the_order_of_use():
    model = Reversed()
    assert modules(depth_groups(model))[-1] == ("a",)  # all that the definition says
    model.train()
    model.b.eval()
    for example in (torch.zeros(3, 6), (torch.zeros(3, 6), 2.0), {"x": torch.zeros(3, 6), "scale": 2.0}):
        groups = depth_groups(model, example=example)
        check(model, groups)
        assert modules(groups) == [("a",), ("b",), ("c",), ("d",)]
        assert groups[0].parameters[0] == "bias"
    assert (model.a.training, model.b.training) == (True, False)
    assert not any(part._forward_pre_hooks for part in model.modules())
    network = torchvision_model("resnet18").to_empty(device="cpu")
    assert depth_groups(network, example=torch.zeros(2, 3, 32, 32)) == depth_groups(network)
    tokens = Tokens()
    assert depth_groups(tokens, example=torch.zeros(2, 6)) == depth_groups(tokens)


def test_parts_that_belong_together_are_whole():
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model = nn.Sequential(nn.Linear(4, 4), weighted, nn.MultiheadAttention(4, 2), nn.LSTM(4, 4), nn.Linear(4, 2))
    check(model, depth_groups(model))
    assert modules(depth_groups(model)) == [("0",), ("1",), ("2",), ("3",), ("4",)]


def test_compiled_models_keep_their_groups():
    groups = depth_groups(torch.compile(Tokens()))  # type: ignore[arg-type]
    assert modules(groups)[1] == ("_orig_mod.blocks.0",)
    assert len(groups) == 5


@pytest.mark.parametrize("most", [2, 0, -1, 2.5, "8"])
def test_too_few_groups_are_refused(most: Any):
    with pytest.raises(InputError, match=r"max_groups=.*; expected an integer >= 3, or None. HINT"):
        depth_groups(plain_mlp(), max_groups=most)


def test_what_has_no_parameters_is_refused():
    with pytest.raises(InputError, match=r"a ReLU with no parameters; expected a model that is built. HINT"):
        depth_groups(nn.ReLU())
    with pytest.raises(InputError, match=r"parameters without a shape \('0.weight'\)"):
        depth_groups(nn.Sequential(nn.LazyLinear(3)))
    with pytest.raises(InputError, match=r"an example that Reversed.forward does not take \(TypeError.*HINT: leave"):
        depth_groups(Reversed(), example={"pixels": torch.zeros(1, 6)})
