"""Texts from the command line."""

import csv
import json
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from lightning_cl import FineTuningModule
from lightning_cl.streams import TextTokenizer
from tests.command_line import Call, call
from tests.text_examples import backbone, rows

__all__ = ["call"]
SHORT = ["batch_size=16", "trainer.max_epochs=6", "optimizer.lr=5e-3", "hydra.run.dir=out", "reference_methods=[]"]
SMALL = [
    *("model=hf_text_small", "model.backbone.config.hidden_size=16", "model.backbone.config.num_hidden_layers=1"),
    *("model.backbone.config.num_attention_heads=2", "stream.dataset.vocab_size=150", "stream.dataset.max_length=16"),
]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("sms", "kind"), *rows(160)])
    return "texts.csv"


def columns(path: str) -> list[str]:
    given = ("path=" + path, "text_column=sms", "label_column=kind")
    return ["stream=text_files", *(f"stream.dataset.{text}" for text in given)]


def test_a_stream_of_texts(texts: str, call: Call, tmp_path: Path):
    outcome = call(*columns(texts), *SMALL, *SHORT, "method=er", "callbacks.er.memory_size=60")
    assert (outcome.code, outcome.err) == (0, "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    matrix = results["accuracy_matrix"]
    assert matrix[0][0] > 0.8
    assert min(matrix[1]) > 0.5
    net = FineTuningModule.load_from_checkpoint(tmp_path / "out" / "model.ckpt", weights_only=True).eval()
    tokenizer = TextTokenizer(tmp_path / "out" / "tokenizer")
    found = net.predict_step(tokenizer(["the small owl", "zinc zinc tin"]))
    assert set(found) <= {"bird", "fruit", "metal", "river"}
    assert found[1] == "metal"


def test_experiment_from_a_folder_of_weights(texts: str, call: Call, tmp_path: Path):
    net = backbone(max_position_embeddings=64)
    net.network.save_pretrained(tmp_path / "weights")
    TextTokenizer(word_tokenizer(), 64).save(tmp_path / "weights")
    folder = "model.backbone.name_or_path=weights"
    outcome = call("experiment=finetune_text", *columns(texts)[1:], folder, "method=naive", *SHORT)
    assert (outcome.code, outcome.err) == (0, "")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["accuracy_matrix"][0][0] > 0.8
    # the model's own tokens
    own, kept = (TextTokenizer(tmp_path / folder).tokenizer.get_vocab() for folder in ("weights", "out/tokenizer"))
    assert own == kept


def word_tokenizer():
    from lightning_cl.streams.tokenizer import word_pieces

    return word_pieces([text for text, _ in rows(160)], 150)


@pytest.mark.parametrize(
    ("arguments", "given", "hint"),
    [
        ("experiment=finetune_text", "path=None, which is not there", "stream.dataset.path=FILE"),
        ("experiment=finetune_text stream.dataset.path=no/such.csv", "path='no/such.csv'", "stream.dataset.path=FILE"),
        (
            "experiment=finetune_text stream.dataset.path=texts.csv",
            "text_column='text' of 'texts.csv'",
            "stream.dataset.text_column=NAME",
        ),
        (
            "FILE experiment=finetune_text",
            "tokenizer 'sentence-transformers/all-MiniLM-L6-v2', neither a path nor in the cache",
            "FOLDER",
        ),
        ("FILE model=hf_text", "name_or_path=None and config=None", "model.backbone.name_or_path=FOLDER"),
        (
            "FILE model=hf_text stream.dataset.tokenizer=auto model.backbone.name_or_path=nobody/nothing",
            "name_or_path= 'nobody/nothing', neither a path nor in the cache",
            "model.backbone.name_or_path=FOLDER",
        ),
        ("FILE model=mlp", "model of kind 'mlp' for texts", "model=hf_text_small"),
        (
            "FILE model=hf_text_small model.backbone.config.vocab_size=20",
            "tokens for a model that knows 20",
            "same name",
        ),
        ("model=hf_text_small", "input_shape=[1, 8, 8]", "stream=text_files"),
    ],
)
def test_bad_input_is_one_line(
    arguments: str, given: str, hint: str, texts: str, call: Call, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    file = [*columns(texts)] if "FILE" in arguments else []
    if "experiment" in arguments and file:
        file = file[1:]
    GlobalHydra.instance().clear()
    line = call(*file, *arguments.removeprefix("FILE ").split()).error
    assert given in line.partition("; expected ")[0]
    assert hint in line.partition(". HINT: ")[2]
