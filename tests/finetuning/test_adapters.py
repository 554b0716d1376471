import copy
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.files import load_state
from lightning_cl.finetuning import (
    MLP,
    FineTuningModule,
    adapter_counts,
    adapter_state,
    add_adapters,
    load_adapters,
    merge_adapters,
    merged_state,
    save_adapters,
)
from tests.finetuning.adapter_examples import IMAGES, MODELS, ConvNet, conv_net, logits, make, train

HEADS = {
    "hf_bert": ["classifier"],
    "hf_distilbert": ["pre_classifier", "classifier"],
    "hf_vit": ["classifier"],
    "timm_vit": ["head"],
    "resnet18": ["fc"],
    "torchvision_swin": ["head"],
}
BOTH = pytest.mark.parametrize("kind", ["lora", "ia3"])
EACH = pytest.mark.parametrize("name", MODELS)


def config(model: nn.Module) -> dict[str, Any]:
    return vars(model)["lightning_cl_adapters"]["config"]


def largest_difference(a: Tensor, b: Tensor) -> float:
    return float((a.detach() - b.detach()).abs().max())


@BOTH
@EACH
def test_the_adapters_and_the_head_train_and_nothing_else(name: str, kind: Any):
    model = make(name)
    kind_of, before = type(model), logits(model)
    base = {id(p): p.detach().clone() for p in model.parameters()}
    assert add_adapters(model, kind) is model
    assert type(model) is kind_of
    assert torch.equal(logits(model), before)
    assert config(model)["heads"] == HEADS[name]
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    start = {key: value.clone() for key, value in adapter_state(model).items()}
    train(model)
    assert not torch.equal(logits(model), before)
    head = {id(p) for path in HEADS[name] for p in model.get_submodule(path).parameters()}
    for parameter in model.parameters():
        if id(parameter) in base and id(parameter) not in head:
            assert not parameter.requires_grad
            assert torch.equal(parameter, base[id(parameter)])
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())
    trained = adapter_state(model)
    assert all(p.grad is not None for key, p in model.named_parameters() if key in trained)
    assert {key for key, value in trained.items() if torch.equal(value, start[key])} == set()


@BOTH
@EACH
def test_a_file_alone_gives_identical_outputs_on_a_fresh_base(name: str, kind: Any, tmp_path: Path):
    model = train(add_adapters(make(name), kind))
    for file in ("adapters.pt", "adapters.safetensors"):
        save_adapters(model, tmp_path / file)
        again = load_adapters(make(name), tmp_path / file).eval()
        assert torch.equal(logits(again), logits(model))
        assert adapter_counts(again) == adapter_counts(model)
        # over adapters that are there already
        assert torch.equal(logits(load_adapters(add_adapters(make(name), kind), tmp_path / file)), logits(model))
    held = load_state(tmp_path / "adapters.pt")
    assert held["version"] == 1
    assert sum(v.numel() for v in held["state"].values()) == adapter_counts(model)["trained"]


@BOTH
@EACH
def test_merged_is_the_plain_module_with_the_same_outputs(name: str, kind: Any):
    model = train(add_adapters(make(name), kind))
    outputs, state = logits(model), merged_state(model)
    assert torch.equal(logits(model), outputs)
    assert merge_adapters(model) is model
    assert largest_difference(logits(model), outputs) < 1e-5
    plain = make(name)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(part) for part in model.modules()] == [type(part) for part in plain.modules()]
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    plain.load_state_dict(state)
    assert torch.equal(logits(plain), logits(model))
    add_adapters(model, kind)


@pytest.mark.parametrize(
    ("name", "kind", "layers"),
    [
        ("hf_bert", "lora", ["self.query", "self.key", "self.value", "output.dense"]),
        ("hf_bert", "ia3", ["self.key", "self.value", "output.dense"]),
        ("timm_vit", "lora", ["attn.qkv", "attn.proj"]),
        ("timm_vit", "ia3", ["attn.qkv", "mlp.fc2"]),
        ("torchvision_swin", "lora", ["mlp.0", "mlp.3"]),
    ],
)
def test_targets_are_found(name: str, kind: Any, layers: list[str]):
    found = [layer for layer in config(add_adapters(make(name), kind))["layers"] if "0." in layer]
    ends = list(dict.fromkeys(".".join(layer.split(".")[-2:]) for layer in found if layer.count(".") > 2))
    assert ends == layers


def test_ia3_scales_the_hidden_features_of_the_feed_forward_block():
    held = config(add_adapters(make("hf_bert"), "ia3"))
    assert held["narrowing"] == [f"bert.encoder.layer.{i}.output.dense" for i in range(2)]
    model = add_adapters(make("timm_vit"), "ia3")
    assert model.blocks[0].mlp.fc2.ia3_l["default"].shape == (1, model.blocks[0].mlp.fc2.in_features)


def test_counts_are_those_of_the_formula():
    model = make("timm_vit")
    total = sum(p.numel() for p in model.parameters())
    # 192 -> 576 and 192 -> 192, in two blocks
    lora, head = 2 * 4 * ((192 + 576) + (192 + 192)), 192 * 3 + 3
    assert adapter_counts(add_adapters(model, rank=4)) == {"trained": lora + head, "head": head, "total": total + lora}


def test_lora_computes_what_the_paper_says():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2)).double()
    plain = copy.deepcopy(model[0])
    add_adapters(model, rank=3, alpha=6)
    a, b = model[0].lora_A["default"].weight, model[0].lora_B["default"].weight
    with torch.no_grad():
        b.normal_(generator=torch.Generator().manual_seed(0))
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert largest_difference(model[0](x), plain(x) + 6 / 3 * x @ a.T @ b.T) < 1e-12


def test_targets_and_head_by_name():
    model = add_adapters(conv_net(), targets="^hidden$", head=["hidden", "out"][1], rank=2)
    assert config(model)["layers"] == ["hidden"]
    assert set(adapter_state(model)) == {
        *("seen", "out.weight", "out.bias", "hidden.lora_A.default.weight", "hidden.lora_B.default.weight"),
    }
    model = add_adapters(conv_net(), targets=["conv", "hidden"], head=None)
    assert config(model)["layers"] == ["conv", "hidden"]  # a grouped convolution cannot be merged
    assert adapter_counts(model)["head"] == 0
    assert config(add_adapters(conv_net(), "ia3"))["layers"] == ["conv", "grouped", "hidden"]


def test_also_train_and_what_was_frozen_by_hand():
    model = conv_net()
    model.out.bias.requires_grad_(False)
    model.conv.bias.requires_grad_(False)
    add_adapters(model, also_train=r"^norm\.")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(IMAGES).square().sum().backward()
    optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    # BatchNorm whose parameters train follows its data, the other one is held
    statistics = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert {"norm.weight", "norm.bias", "out.weight", "seen"} | statistics <= changed
    assert not {"out.bias", "conv.base_layer.bias", "plain_norm.running_mean"} & changed
    assert statistics | {"norm.weight", "out.bias", "seen"} <= set(adapter_state(model))
    merge_adapters(model)
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["conv.bias", "out.bias"]
    model.train()
    statistics_before = model.plain_norm.running_mean.clone()
    model(IMAGES)
    assert not torch.equal(model.plain_norm.running_mean, statistics_before)


def test_frozen_batchnorm_computes_alike_in_training_and_evaluation():
    model = add_adapters(conv_net())
    model.drop.p = 0.0
    evaluated = model.eval()(IMAGES)
    model.train()
    model.norm.train()
    model.plain_norm.training = True  # as a schedule that thaws leaves it
    assert torch.equal(model(IMAGES), evaluated)
    assert not model.norm.training


def test_nothing_global_is_drawn_and_the_seed_decides():
    models = []
    torch.manual_seed(3)
    expected = torch.rand(3)
    for drawn in (0, 5):
        torch.manual_seed(3)
        random.seed(drawn)
        models.append(add_adapters(conv_net()))
        assert torch.equal(torch.rand(3), expected)
    one, two, other = [
        adapter_state(m)["hidden.lora_A.default.weight"] for m in (*models, add_adapters(conv_net(), seed=1))
    ]
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_adapted_too(copied: Any, tmp_path: Path):
    model = add_adapters(conv_net())
    again = copied(model).train()
    again(IMAGES)
    assert torch.equal(again.norm.running_mean, model.norm.running_mean)
    assert again.load_state_dict(adapter_state(model))
    merge_adapters(again)
    assert set(again.state_dict()) == set(conv_net().state_dict())
    again.train()(IMAGES)
    assert not torch.equal(again.norm.running_mean, model.norm.running_mean)


def test_the_adapted_network_of_a_wrapper(tmp_path: Path):
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = conv_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x)

    wrapper = train(add_adapters(Wrapper().eval()))
    save_adapters(wrapper, tmp_path / "a.pt")
    alone = load_adapters(conv_net(), tmp_path / "a.pt", strip="model.")
    assert torch.equal(alone(IMAGES), wrapper(IMAGES))
    # adapted inside, saved from outside
    save_adapters(nn.Sequential(alone), tmp_path / "b.pt")
    assert torch.equal(load_adapters(conv_net(), tmp_path / "b.pt")(IMAGES), wrapper(IMAGES))
    with pytest.raises(InputError, match=r"strip='net\.' for"):
        load_adapters(conv_net(), tmp_path / "a.pt", strip="net.")
    with pytest.raises(
        InputError, match=r"adapters for 'model\.conv', which ConvNet does not have.*HINT: strip='model\.'"
    ):
        load_adapters(conv_net(), tmp_path / "a.pt")


def test_a_base_in_another_precision_is_the_same_base(tmp_path: Path):
    model = train(add_adapters(conv_net()))
    save_adapters(model, tmp_path / "a.pt")
    load_adapters(conv_net().to(torch.bfloat16), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"base weights of ConvNet that are not those .* HINT: load them before"):
        load_adapters(ConvNet(), tmp_path / "a.pt")
    load_adapters(ConvNet(), tmp_path / "a.pt", check_base=False)


def test_a_state_dict_with_part_of_the_base_is_no_state_of_adapters():
    model = add_adapters(conv_net())
    state = adapter_state(model)
    state["conv.base_layer.weight"] = model.conv.base_layer.weight
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state)


def test_more_of_pefts_options():
    model = train(add_adapters(conv_net(), targets="hidden", options={"use_rslora": True, "use_dora": True}))
    assert "hidden.lora_magnitude_vector.default.weight" in adapter_state(model)


def test_a_language_model_head_is_not_trained():
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        ids = {"bos_token_id": 1, "eos_token_id": 2}
        model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, **ids))
    assert config(add_adapters(model))["heads"] == []
    assert not model.lm_head.weight.requires_grad


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"kind": "dora"}, r"kind='dora'; expected 'lora' or 'ia3'\. HINT: "),
        ({"rank": 0}, r"rank=0; expected an integer >= 1\. HINT: "),
        ({"rank": True}, "rank=True; expected"),
        ({"alpha": 0}, "alpha=0; expected a number > 0"),
        ({"dropout": 1.0}, r"dropout=1.0; expected a number in \[0, 1\)"),
        ({"options": {"a": object()}}, "options=.*; expected plain values"),
        ({"options": {"r": 3}}, r"options \['r'\]; expected what has no argument here"),
        ({"options": {"no_such": 3}}, r"options=\{'no_such': 3\} .*; expected arguments of peft's lora config"),
        ({"targets": "("}, r"targets='\(' .*; expected a regular expression"),
        ({"targets": "nothing"}, r"targets='nothing', which matches none of the 2 layers .* called conv, hidden"),
        ({"head": "fc"}, "head='fc'; expected the path of a module. HINT: there are conv, norm"),
        ({"also_train": "("}, r"also_train='\(' .*; expected a regular expression"),
        ({"also_train": "nothing"}, "also_train='nothing'; expected a pattern found in a parameter's name"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str):
    model = conv_net()
    with pytest.raises(InputError, match=said):
        add_adapters(model, **arguments)
    assert list(model.state_dict()) == list(conv_net().state_dict())
    assert all(p.requires_grad for p in model.parameters())


def test_modules_that_cannot_be_adapted():
    with pytest.raises(InputError, match="ReLU without a Linear layer that could be the head"):
        add_adapters(nn.ReLU())
    with pytest.raises(InputError, match=r"Sequential without a Linear or convolution layer outside its head"):
        add_adapters(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)))
    with pytest.raises(InputError, match=r"ConvNet with adapters already, at 'conv', .*HINT: merge_adapters"):
        add_adapters(add_adapters(conv_net()))
    with pytest.raises(InputError, match="only MultiheadAttention, which reads its weights"):
        add_adapters(nn.Sequential(nn.MultiheadAttention(4, 2), nn.Linear(4, 4), nn.Linear(4, 2)), targets="^0")
    for function in (adapter_state, merge_adapters, merged_state, adapter_counts):
        with pytest.raises(InputError, match="ConvNet with 0 adapted modules; expected one"):
            function(conv_net())


def test_without_peft(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"without peft; .* HINT: pip install 'lightning-cl\[hf\]'"):
        add_adapters(conv_net())


def test_files_that_do_not_fit(tmp_path: Path):
    save_adapters(add_adapters(conv_net()), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"with lora on 2 layers, rank 8, .* with lora on 2 layers, rank 4"):
        load_adapters(add_adapters(conv_net(), rank=4), tmp_path / "a.pt")
    wider = conv_net()
    wider.out = nn.Linear(8, 5)
    with pytest.raises(InputError, match=r"other shapes: out.weight \(3, 8\) for \(5, 8\).* HINT: build the"):
        load_adapters(wider, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"no file '.*b\.pt'"):
        load_adapters(conv_net(), tmp_path / "b.pt")
    torch.save({"state_dict": {}}, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"c\.pt', which holds no adapters \(KeyError"):
        load_adapters(conv_net(), tmp_path / "c.pt")
    held = load_state(tmp_path / "a.pt")
    for config in ({**held["config"], "version": 2}, {"version": 1, "kind": "lora"}):
        torch.save({**held, "config": config}, tmp_path / "d.pt")
        with pytest.raises(
            InputError, match=rf"adapters of version {config['version']} in a checkpoint; .* HINT: upda"
        ):
            load_adapters(conv_net(), tmp_path / "d.pt")


def test_a_checkpoint_without_adapters_is_refused_by_a_module_with_them():
    module = add_adapters(FineTuningModule(MLP((4,), (8,)), class_names=["a", "b"]))
    plain = FineTuningModule(MLP((4,), (8,)), class_names=["a", "b"])
    checkpoint = {"hyper_parameters": dict(plain.hparams), "state_dict": plain.state_dict()}
    with pytest.raises(InputError, match="a checkpoint with no adapters for FineTuningModule with lora on 1 layers"):
        module.on_load_checkpoint(checkpoint)


def test_a_module_that_is_merged_has_no_adapters_in_its_hyperparameters(tmp_path: Path):
    module = add_adapters(FineTuningModule(MLP((4,), (8,)), class_names=["a", "b"]), rank=2)
    assert module.hparams["adapters"]["layers"] == ["backbone.layers.1"]
    module.set_rule("bias_correction")
    module.learn_classes(["a", "b", "c"])
    save_adapters(module, tmp_path / "a.pt")
    plain = FineTuningModule(MLP((4,), (8,)), class_names=["a", "b"])
    plain.backbone.load_state_dict(merged_backbone(module))
    again = load_adapters(plain, tmp_path / "a.pt")
    assert again.class_names == ["a", "b", "c"]
    assert again.hparams["rule"] == "bias_correction"
    assert set(adapter_state(again)) == set(adapter_state(module))
    merge_adapters(again)
    assert again.hparams["adapters"] is None


def merged_backbone(module: Any) -> dict[str, Tensor]:
    """Of adapters that have not been trained: the base."""
    state = merged_state(module)
    return {name.removeprefix("backbone."): value for name, value in state.items() if name.startswith("backbone.")}
