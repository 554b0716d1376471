"""A new classifier on models of three libraries, and on modules that nobody knows."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning import ClassifierHead, CosineHead, FineTuningModule, MLPHead, replace_head
from lightning_cl.finetuning._find_head import find_heads
from tests.finetuning.examples import module

TORCHVISION = {
    "resnet18": ["fc"],
    "shufflenet_v2_x0_5": ["fc"],
    "alexnet": ["classifier.6"],
    "vgg11": ["classifier.6"],
    "mobilenet_v2": ["classifier.1"],
    "mobilenet_v3_small": ["classifier.3"],
    "efficientnet_b0": ["classifier.1"],
    "convnext_tiny": ["classifier.2"],
    "densenet121": ["classifier"],
    "vit_b_16": ["heads.head"],
    "swin_t": ["head"],
    "maxvit_t": ["classifier.5"],
    "squeezenet1_0": ["classifier.1"],
    "inception_v3": ["fc", "AuxLogits.fc"],
    "googlenet": ["fc", "aux1.fc2", "aux2.fc2"],
}


def torchvision_model(name: str, device: str = "meta") -> Any:
    import torchvision

    options = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    with torch.device(device):
        return torchvision.models.get_model(name, **options)


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_torchvision_family(name: str) -> None:
    """Looked at on the meta device: only the structure matters here."""
    model = torchvision_model(name)
    assert find_heads(model) == TORCHVISION[name]
    assert replace_head(model, ["cat", "dog", "owl"]) is model
    for where in TORCHVISION[name]:
        layer = model.get_submodule(where)
        assert layer.class_names == ["cat", "dog", "owl"]
        assert len(layer.weight) == 3
        assert layer.weight.is_meta
    assert getattr(model, "num_classes", 3) == 3
    assert find_heads(model) == TORCHVISION[name]


@pytest.mark.parametrize("head", ["linear", "mlp", "cosine"])
def test_it_computes(head: Any) -> None:
    model = replace_head(torchvision_model("resnet18", "cpu"), 4, head=head).eval()
    features: list[torch.Tensor] = []
    model.fc.register_forward_pre_hook(lambda _, given: features.append(given[0]))
    out = model(torch.randn(2, 3, 32, 32))
    assert out.shape == (2, 4)
    layer = {"linear": ClassifierHead, "mlp": MLPHead, "cosine": CosineHead}[head](512, ["0", "1", "2", "3"])
    assert torch.equal(out, layer.eval()(features[0]))  # a function of (seed, class name)
    grown = replace_head(model, 6, head=head)
    assert torch.equal(grown(torch.zeros(2, 3, 32, 32))[:, :4], model(torch.zeros(2, 3, 32, 32))[:, :4])


def test_squeezenet_and_auxiliary_outputs_train() -> None:
    model = replace_head(torchvision_model("squeezenet1_1", "cpu"), ["a", "b"])
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 2)
    kept = model.classifier[1].weight[1]
    replace_head(model, ["b", "c", "d"])
    assert torch.equal(model.classifier[1].weight[0], kept)
    with pytest.raises(InputError, match=r"head='mlp' with \{\} for classifier.1, a convolution; .* HINT: leave head"):
        replace_head(model, 2, head="mlp")
    out = replace_head(torchvision_model("googlenet", "cpu"), 5, head="cosine").train()(torch.randn(2, 3, 64, 64))
    assert [part.shape[1] for part in out] == [5, 5, 5]


def test_rows_are_kept_by_class_name() -> None:
    model = replace_head(nn.Sequential(nn.Linear(4, 9)), ["cat", "dog", "owl"])
    weight, bias = (value.detach().clone() for value in (model[0].weight, model[0].bias))
    fresh = ClassifierHead(4, ["ant"])
    replace_head(model, ["owl", "ant", "cat"])
    assert torch.equal(model[0].weight, torch.stack([weight[2], fresh.weight[0], weight[0]]))
    assert torch.equal(model[0].bias, torch.stack([bias[2], fresh.bias[0], bias[0]]))
    assert model[0].weight.requires_grad


def test_other_ways_to_keep_rows() -> None:
    def plain() -> Any:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3))

    old = plain()[0].weight
    assert torch.equal(replace_head(plain(), 5, keep_rows="first")[0].weight[:3], old)
    assert torch.equal(replace_head(plain(), 2, keep_rows="first")[0].weight, old[:2])
    named = replace_head(plain(), ["c", "d"], old_classes=["a", "b", "c"])[0].weight
    assert torch.equal(named[0], old[2])
    for fresh in (replace_head(plain(), 3), replace_head(replace_head(plain(), 3), 3, keep_rows="none", seed=1)):
        assert not (fresh[0].weight.unsqueeze(1) == old).all(-1).any()
    cosine = replace_head(replace_head(plain(), 3, keep_rows="first"), 4, head="cosine")[0]
    assert torch.equal(cosine.weight[:3, 0], old)  # directions
    assert not replace_head(replace_head(plain(), 3), 3, head="mlp", hidden=7)[0].weight.isnan().any()


def test_an_mlp_head_keeps_its_hidden_layer_and_a_cosine_head_its_scale() -> None:
    model = replace_head(nn.Sequential(nn.Linear(4, 3)), ["a", "b"], head="mlp", hidden=6, dropout=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    x, before = torch.randn(5, 4), model[0]
    expected = before.eval()(x)
    replace_head(model, ["b", "c", "a"], head="mlp", hidden=6)
    assert torch.equal(model.eval()(x)[:, [2, 0]], expected)
    replace_head(model, ["a"], head="mlp", hidden=5)  # another width: everything is new
    assert torch.equal(model[0].rows.weight, MLPHead(4, ["a"], hidden=5).rows.weight)
    model = replace_head(nn.Sequential(nn.Linear(4, 3)), ["a", "b"], head="cosine", eta=3.0)
    assert replace_head(model, ["a", "b", "c"], head="cosine")[0].eta.item() == 3


def test_nothing_global_is_drawn_and_device_dtype_and_bias_stay() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)).eval()
    before = torch.get_rng_state()
    for head in ("linear", "mlp", "cosine"):
        new = replace_head(nn.Sequential(*model), 2, head=head)[0]  # type: ignore[arg-type]
        assert {p.dtype for p in new.parameters()} == {torch.bfloat16}
        assert not new.training
    assert torch.equal(torch.get_rng_state(), before)
    assert replace_head(model, 2)[0].bias is None
    assert model[0].add_classes(["x"]) == 1
    model[0].redraw(3)


class Net(nn.Module):
    """A user's module with several Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.out, self.value = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 1)


class Around(nn.Module):
    """A library's model inside another module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model, self.loss, self.num_classes = model, nn.CrossEntropyLoss(), 1000


def test_modules_of_ones_own() -> None:
    with pytest.raises(InputError, match="Net, which does not tell which layer is its classifier") as caught:
        replace_head(Net(), 3)
    assert "'encoder' (3 -> 4), 'out' (4 -> 2), 'value' (4 -> 1)" in str(caught.value)
    assert "HINT: pass name='...'" in str(caught.value)
    net = replace_head(Net(), 3, name="out")
    assert (net.out.out_features, net.value.out_features) == (3, 1)
    assert replace_head(net, 5).out.out_features == 5  # now it is known
    for wrong in ("nothing", "", "encoder.weight"):
        with pytest.raises(InputError, match=rf"name='{wrong}', which is no classifier layer; expected 'encoder'"):
            replace_head(Net(), 3, name=wrong)
    with pytest.raises(InputError, match="expected the name of one of its layers: none is Linear"):
        replace_head(nn.Linear(3, 2), 3)
    many = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    with pytest.raises(InputError, match=r"4 others, '4' \(2 -> 2\)"):
        replace_head(many, 3)
    wrapped = replace_head(Around(torchvision_model("mobilenet_v3_small")), 7)
    assert (wrapped.model.classifier[3].out_features, wrapped.num_classes) == (7, 7)
    compiled: Any = torch.compile(nn.Sequential(nn.Linear(2, 2)))
    assert replace_head(compiled, 5) is compiled
    assert compiled._orig_mod[0].out_features == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: replace_head(m, 0), r"classes=0; expected a number >= 1, or names, each once"),
        (lambda m: replace_head(m, True), r"classes=True; expected"),
        (lambda m: replace_head(m, "cat"), r"classes='cat'; expected"),
        (lambda m: replace_head(m, ["a", "a"]), r"classes=\['a', 'a'\]; expected"),
        (lambda m: replace_head(m, 2, head="rbf"), r"head='rbf'; expected one of linear, mlp, cosine"),
        (lambda m: replace_head(m, 2, keep_rows="all"), r"keep_rows='all'; expected 'matching', 'first' or 'none'"),
        (lambda m: replace_head(m, 2, old_classes=["a"]), r"1 old_classes; expected 3, one for each row of 0"),
        (lambda m: replace_head(m, 2, hidden=3), r"options \['hidden'\] of a linear head; expected none"),
        (lambda m: replace_head(m, 2, head="mlp", eta=3), r"options \['eta'\] of a mlp head; expected hidden, dropout"),
        (lambda m: replace_head(m, 2, head="mlp", hidden=0), r"hidden=0; expected an integer >= 1"),
        (lambda m: replace_head(m, 2, head="mlp", dropout=1), r"dropout=1; expected a number in \[0, 1\)"),
        (lambda m: replace_head(module(), 2), r"a FineTuningModule; expected .* HINT: call learn_classes"),
    ],
)
def test_refusals(call: Callable[[Any], Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    layer = model[0]
    with pytest.raises(InputError, match=message):
        call(model)
    assert model[0] is layer


TIMM = {
    "resnet18": ["fc"],
    "vit_tiny_patch16_224": ["head"],
    "convnext_atto": ["head.fc"],
    "mobilenetv3_small_050": ["classifier"],
    "resnetv2_50": ["head.fc"],
    "deit_tiny_distilled_patch16_224": ["head", "head_dist"],
    "levit_128s": ["head.linear", "head_dist.linear"],
    "tf_efficientnet_lite0": ["classifier"],
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    replace_head(model, ["a", "b"])
    assert find_heads(model) == TIMM[name]
    assert model.num_classes == 2
    assert model(torch.zeros(1, 3, 224, 224, device="meta")) is not None
    assert replace_head(model, ["a", "b", "c"]).num_classes == 3


def test_a_timm_model_without_a_classifier_gets_one() -> None:
    timm = pytest.importorskip("timm")
    model = replace_head(timm.create_model("resnet18", num_classes=0), ["a", "b"], head="mlp").eval()
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    assert model.get_classifier() is model.fc


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
HF: dict[str, tuple[dict[str, Any], list[str]]] = {
    "vit": ({**SMALL, "image_size": 32, "patch_size": 8}, ["classifier"]),
    "resnet": ({"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}, ["classifier.1"]),
    "bert": ({**SMALL, "vocab_size": 30}, ["classifier"]),
    "roberta": ({**SMALL, "vocab_size": 30, "pad_token_id": 1}, ["classifier.out_proj"]),
    "distilbert": ({"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 30}, ["classifier"]),
    "llama": ({**SMALL, "vocab_size": 30, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}, ["score"]),
}


def hf_model(name: str, **options: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    image = name in ("vit", "resnet")
    kind = transformers.AutoModelForImageClassification if image else transformers.AutoModelForSequenceClassification
    return kind.from_config(transformers.CONFIG_MAPPING[name](**HF[name][0], **options)).eval()


@pytest.mark.parametrize("name", HF)
def test_hf(name: str, tmp_path: Any) -> None:
    model = hf_model(name)
    assert find_heads(model) == HF[name][1]
    replace_head(model, ["cat", "dog", "owl"])
    assert (model.config.num_labels, model.num_labels) == (3, 3)
    assert (model.config.id2label[1], model.config.label2id["owl"]) == ("dog", 2)
    image = name in ("vit", "resnet")
    x = {"pixel_values": torch.zeros(2, 3, 32, 32)} if image else {"input_ids": torch.tensor([[4, 5], [6, 7]])}
    out = model(**x, labels=torch.tensor([0, 2]))
    assert out.logits.shape == (2, 3)
    assert out.loss.isfinite()
    model.save_pretrained(tmp_path)  # and the library's own loading agrees
    again = type(model).from_pretrained(tmp_path).eval()
    assert torch.equal(again(**x).logits, model(**x).logits)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    row = again.get_submodule(HF[name][1][0]).weight[2].clone()
    replace_head(again, ["owl", "ant"])  # its names are known from the config
    assert torch.equal(again.get_submodule(HF[name][1][0]).weight[0], row)


def test_hf_from_one_output_to_classes() -> None:
    model = hf_model("bert", num_labels=1)
    x = {"input_ids": torch.tensor([[4, 5]])}
    model(**x, labels=torch.tensor([0.5]))
    assert model.config.problem_type == "regression"
    replace_head(model, 2)
    model(**x, labels=torch.tensor([1]))
    assert model.config.problem_type == "single_label_classification"


def test_an_mlp_head_in_the_module(tmp_path: Any) -> None:
    from lightning_cl import run_sequence
    from tests.finetuning.examples import FEW_EPOCHS, blobs, stream

    model = module(head_layer="mlp", head_options={"hidden": 32, "dropout": 0.1})
    results = run_sequence(model, stream(), [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, run_dir=tmp_path)
    assert model.head.rows.weight.shape == (6, 32)
    assert results["accuracy_matrix"][-1][-1] > 0.5
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    x = blobs().test.batch(torch.arange(20))[0]
    assert torch.equal(again(x), model.eval()(x))
    with pytest.raises(InputError, match=r"head_options \['eta'\]; expected hidden, dropout\. HINT: leave"):
        module(head_layer="mlp", head_options={"eta": 1.0})
    with pytest.raises(InputError, match=r"head='separate' with head_layer='mlp'; expected one head"):
        module(head="separate", head_layer="mlp")
