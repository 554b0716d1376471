"""FineTuningModule on batches that are mappings, and the text encoder behind it."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import lightning_cl
from lightning_cl import (
    DER,
    DGR,
    EEIL,
    EWC,
    LUCIR,
    BalancedFineTuning,
    BiC,
    FineTuningModule,
    FreezingSchedule,
    GDumb,
    ICaRL,
    LwF,
    PODNet,
    Replay,
)
from lightning_cl.errors import InputError
from lightning_cl.finetuning import MLP, HFTextBackbone
from lightning_cl.finetuning.backbones import backbone_from_spec
from lightning_cl.finetuning.batch_parts import split_batch
from lightning_cl.functional.batches import concatenate
from lightning_cl.functional.fisher import diagonal_fisher
from lightning_cl.sequence import run_sequence
from lightning_cl.streams import TextTokenizer
from tests.finetuning.examples import FEW_EPOCHS
from tests.text_examples import TINY, backbone, inputs, module, stream


def batch_of(tasks: Any, task: int = 0, n: int = 9) -> dict[str, torch.Tensor]:
    return tasks[task].train.batch(torch.arange(n))


# batches --------------------------------------------------------------------------------------------------------------


def test_parts_of_any_batch():
    x, y, task = torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([0, 0])
    assert split_batch(x) == (x, None, None)
    assert split_batch((x, y)) == (x, y, None)
    assert split_batch([x, y, task]) == (x, y, task)
    assert split_batch({"pixel_values": x, "label": y, "id": task, "name": ["a", "b"]}) == (x, y, None)
    assert split_batch({"input_ids": x, "attention_mask": x, "y": y, "task_id": task}) == (
        {"input_ids": x, "attention_mask": x}, y, task,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"a batch with \['labels'\], no tensor of which is an input"):
        split_batch({"labels": y})


@pytest.mark.parametrize("named", [False, True])
def test_a_mapping_of_one_input_is_as_a_pair(named: bool):
    net = FineTuningModule(MLP((4,), hidden=(8,)), input_shape=(4,), class_names=["a", "b"])
    x, y = torch.randn(5, 4), torch.tensor([0, 1, 0, 1, 1])
    batch: Any = {"pixel_values": x, "labels": y} if named else (x, y)
    logits = net.head(net.backbone(x))
    assert torch.equal(net.training_step(batch, 0), cross_entropy(logits, y))
    assert torch.equal(net.all_logits(batch)[0], logits)
    assert net.predict_step(batch) == [["a", "b"][i] for i in logits.argmax(1).tolist()]


def test_active_classes_and_tasks_of_mappings():
    tasks = stream("task_incremental")
    net = module(class_names=tasks.class_names, tasks=[[0, 1], [2, 3]], head="multi").eval()
    batch = batch_of(tasks, 1)
    raw, _y = net.all_logits(batch)
    assert torch.equal(raw, net.head(net.backbone(inputs(batch))))
    masked, _ = net.importance_logits(batch)
    assert (masked[:, :2] < -1e9).all()
    assert torch.equal(masked[:, 2:], raw[:, 2:])
    assert torch.equal(net(batch), masked)  # labels and task ids of a whole batch are found
    assert torch.equal(net(inputs(batch), batch["task"]), masked)
    assert set(net.predict_step(batch)) <= set(tasks.class_names[2:])
    with pytest.raises(InputError, match="a batch without task ids"):
        net(inputs(batch))


# the encoder ----------------------------------------------------------------------------------------------------------


def test_padding_changes_nothing():
    net, batch = backbone(pad_token_id=7).eval(), batch_of(stream())
    features = net(inputs(batch))
    assert features.shape == (9, net.feature_dim)
    wider = {name: torch.nn.functional.pad(leaf, (0, 4)) for name, leaf in inputs(batch).items()}
    torch.testing.assert_close(net(wider), features, rtol=1e-5, atol=1e-6)
    for i in range(9):
        n = int(batch["attention_mask"][i].sum())
        one = net({name: leaf[i : i + 1, :n] for name, leaf in inputs(batch).items()})
        torch.testing.assert_close(one[0], features[i], rtol=1e-5, atol=1e-6)


def test_pooling_against_the_states_of_the_model():
    from transformers import BertConfig, BertModel

    batch = inputs(batch_of(stream()))
    values = {key: value for key, value in TINY.items() if key != "model_type"}
    reference = BertModel(BertConfig(**values)).eval()
    weights = {key: value for key, value in reference.state_dict().items() if not key.startswith("pooler")}
    states = reference(**batch).last_hidden_state
    for pooling in ("cls", "mean"):
        net = HFTextBackbone(config=TINY, pooling=pooling).eval()
        net.network.load_state_dict(weights)
        expected = states[:, 0]
        if pooling == "mean":
            rows = zip(states, batch["attention_mask"].bool(), strict=True)
            expected = torch.stack([row[mask].mean(0) for row, mask in rows])
        torch.testing.assert_close(net(batch), expected)


OTHERS = [
    {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": 150},
    {"model_type": "roberta", **{k: v for k, v in TINY.items() if k != "model_type"}},
    {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 150},
    {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 150},
]


@pytest.mark.parametrize("config", OTHERS, ids=lambda config: config["model_type"])
def test_other_architectures(config: dict[str, Any]):
    net, batch = HFTextBackbone((16,), config=config).eval(), inputs(batch_of(stream()))
    features = net(batch)
    assert features.shape == (9, 16)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())  # none is without effect
    again = backbone_from_spec(net.spec).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(batch), features)


def test_a_folder_and_what_is_wrong_with_it(tmp_path: Path):
    net = backbone()
    net.network.save_pretrained(tmp_path)
    loaded = HFTextBackbone((16,), str(tmp_path), config={"hidden_dropout_prob": 0.5}).eval()
    batch = inputs(batch_of(stream()))
    assert torch.equal(loaded(batch), net.eval()(batch))
    assert loaded.network.config.hidden_dropout_prob == 0.5
    assert loaded.pooling == "mean"
    assert str(tmp_path) not in str(loaded.spec)
    random = HFTextBackbone((16,), str(tmp_path), weights=False).eval()
    assert not torch.equal(random(batch), loaded(batch))
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert HFTextBackbone((16,), str(tmp_path)).pooling == "cls"
    assert not loaded.unit_length
    modules = [{"type": "sentence_transformers.models.Transformer"}, {"type": "sentence_transformers.models.Normalize"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert HFTextBackbone((16,), str(tmp_path)).unit_length
    assert HFTextBackbone((16,), str(tmp_path), weights=False).unit_length
    with pytest.raises(InputError, match=r"whose weights lack 16 entries of the model, such as 'encoder.layer.1"):
        HFTextBackbone((16,), str(tmp_path), config={"num_hidden_layers": 2})
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"name_or_path= .*expected a folder that save_pretrained has written. HINT:"):
        HFTextBackbone((16,), str(tmp_path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name_or_path=None and config=None"),
        ({"name_or_path": "./none"}, "expected an existing folder, or a name on the hub"),
        (
            {"config": {"model_type": "brt"}},
            "model_type='brt'; expected one that transformers knows. HINT: did you mean",
        ),
        ({"config": {**TINY, "num_attention_heads": 3}}, "config .* of 'bert'"),
        ({"config": TINY, "pooling": "max"}, "pooling='max'"),
        ({"config": TINY, "input_shape": (64,)}, "texts of up to 64 tokens for a model that takes 32.*max_length=32"),
        ({"config": TINY, "input_shape": (1, 8, 8)}, r"input_shape=\[1, 8, 8\]"),
    ],
)
def test_bad_backbones(options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        HFTextBackbone(**options)


def test_a_token_that_the_model_does_not_know():
    with pytest.raises(InputError, match="token 150 for a model that knows 150; expected texts in the model's own"):
        backbone()(torch.tensor([[1, 150]]))


def test_a_name_that_cannot_be_downloaded_is_refused_at_once(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"nor in the cache; expected a network connection to download it. HINT: model"
    ):
        HFTextBackbone((16,), "nobody/no-such-model")
    with pytest.raises(
        InputError, match=r"nor in the cache; expected a network .*HINT: model.backbone.name_or_path=FOLDER"
    ):
        TextTokenizer("nobody/no-such-model")


def test_transformers_is_imported_when_it_is_needed():
    imports = re.compile(r"^(import|from) (transformers|tokenizers|huggingface_hub)", re.MULTILINE)
    for file in Path(lightning_cl.__file__).parent.rglob("*.py"):
        assert not imports.search(file.read_text()), file
    code = (
        "import sys, lightning_cl.streams, lightning_cl.finetuning.backbones; sys.exit('transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# methods --------------------------------------------------------------------------------------------------------------

METHODS: dict[str, Any] = {
    "naive": lambda: [],
    "er": lambda: [Replay(20)],
    "er separate": lambda: [Replay(20, mode="separate", policy="class_balanced")],
    "herding": lambda: [Replay(20, policy="herding")],
    "derpp": lambda: [DER(20, 0.5, 0.5)],
    "ewc": lambda: [EWC(100.0)],
    "lwf": lambda: [LwF(1.0)],
    "freezing": lambda: [FreezingSchedule(until_epoch=1)],
}
SMALL: dict[str, Any] = {"trainer": FEW_EPOCHS, "batch_size": 12, "progress_bar": False}


@pytest.fixture(scope="module")
def naive() -> dict[str, torch.Tensor]:
    return learnt("naive")


def learnt(name: str, **options: Any) -> dict[str, torch.Tensor]:
    net = module()
    assert run_sequence(net, stream(), METHODS[name](), **{**SMALL, **options})["status"] == "finished"
    assert all(parameter.isfinite().all() for parameter in net.parameters())
    return {name: parameter.detach().clone() for name, parameter in net.named_parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_methods_change_what_is_learnt(name: str, naive: dict[str, torch.Tensor]):
    own = learnt(name)
    assert any(not torch.equal(own[key], naive[key]) for key in naive) == (name != "naive")


@pytest.mark.parametrize("name", ["er", "derpp", "ewc", "lwf"])
def test_methods_in_half_precision_with_accumulation(name: str):
    options = {"precision": "bf16-mixed", "accumulate_grad_batches": 2, "gradient_clip_val": 1.0}
    own, naive = (learnt(n, trainer=partial(FEW_EPOCHS, **options)) for n in (name, "naive"))
    assert any(not torch.equal(own[key], naive[key]) for key in naive)


@pytest.mark.parametrize("name", ["icarl", "bic", "gdumb", "eeil", "lucir", "balanced"])
def test_methods_that_read_features_take_texts(name: str):
    callbacks: dict[str, Any] = {
        "icarl": lambda: [ICaRL(20)],
        "bic": lambda: [BiC(40)],
        "gdumb": lambda: [GDumb(20, max_epochs=2)],
        "eeil": lambda: [EEIL(20)],
        "lucir": lambda: [LUCIR(20)],
        "balanced": lambda: [Replay(20), BalancedFineTuning(epochs=1)],
    }
    options: dict[str, Any] = {"lucir": {"head_layer": "cosine", "head_options": {"imprint": True}}}
    results = run_sequence(module(**options.get(name, {})), stream(), callbacks[name](), **SMALL)
    assert results["status"] == "finished"
    assert all(value >= 0 for value in results["accuracy_matrix"][1])


def test_what_cannot_work_on_texts_says_so():
    with pytest.raises(
        InputError, match=r"'stage network.encoder' of PODNet, which puts out a .*HINT: name them: callbacks"
    ):
        run_sequence(module(head_layer="cosine"), stream(), [PODNet(20)], **SMALL)
    with pytest.raises(InputError, match=r"a batch with leaves \['attention_mask', 'input_ids', 'labels'\]"):
        run_sequence(module(), stream(), [DGR()], **SMALL)


def test_evaluation_within_tasks_and_a_budget():
    options = {**SMALL, "evaluate_every_n_steps": 3, "budget": 0.9, "updates_per_batch": 2}
    results = run_sequence(module(), stream("task_incremental"), [], **options)
    assert results["status"] == "finished"
    assert [row["step"] for row in results["continual_evaluation"]][:1] == [3]


def test_fisher_is_that_of_a_loop_over_texts():
    tasks = stream()
    net = module(class_names=tasks.class_names[:2]).eval()
    batches = [tasks[0].train.batch(torch.arange(start, start + 5)) for start in (0, 5)]
    found = diagonal_fisher(net, batches, labels="exact", logits_fn=lambda net, batch: net.importance_logits(batch))
    net.double()
    parameters = dict(net.named_parameters())
    expected = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for batch in batches:
        for i in range(5):
            n = int(batch["attention_mask"][i].sum())
            text = {name: leaf[i : i + 1, :n] for name, leaf in inputs(batch).items()}
            log_p = net.head(net.backbone(text)).log_softmax(1)[0]
            for c in range(2):
                gradients = torch.autograd.grad(log_p[c], list(parameters.values()), retain_graph=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    expected[name] += log_p[c].exp().detach() * gradient**2 / 10
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-3, atol=1e-8)


def test_a_replayed_batch_is_padded_to_the_longer_one():
    tasks = stream()
    short, long = (dict(batch_of(tasks, t, n).items()) for t, n in ((0, 1), (1, 9)))
    both = concatenate(short, long)
    assert both["input_ids"].shape == (10, max(short["input_ids"].shape[1], long["input_ids"].shape[1]))
    net = module(class_names=tasks.class_names).eval()
    torch.testing.assert_close(net(both)[1:], net(long), rtol=1e-5, atol=1e-6)


def test_a_grown_model_predicts_from_its_checkpoint_alone(tmp_path: Path):
    net, tasks = module(), stream()
    run_sequence(net, tasks, [], run_dir=tmp_path, **SMALL)
    again = FineTuningModule.load_from_checkpoint(tmp_path / "model.ckpt", weights_only=True).eval()
    tokenizer = TextTokenizer(tmp_path / "tokenizer")
    texts = ["a small owl and a wren", "zinc", "the thames"]
    assert again.predict_step(tokenizer(texts)) == net.eval().predict_step(tasks.tokenizer(texts))
    assert again.class_names == ["bird", "fruit", "metal", "river"]
