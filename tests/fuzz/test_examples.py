"""What fuzzing has found: each was a traceback, or a line that named no key."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch.utils.data import TensorDataset

from lightning_cl.errors import InputError
from lightning_cl.streams import custom
from lightning_cl.streams.item_data import ItemData
from tests.fuzz.datasets import Items
from tests.fuzz.harness import attempt, config_of

CONFIGS = [
    ("er", "model", 0, "model=0; expected a section with a _target_"),
    ("er", "trainer", 0, "trainer=0; expected a section with a _target_"),
    ("er", "optimizer", float("inf"), "optimizer=inf; expected a section with a _target_"),
    ("er", "optimizer._partial_", 0, "optimizer._partial_=0; expected true"),
    ("er", "model.backbone._partial_", 0, "model.backbone._partial_=0; expected true or false"),
    ("er", "model._target_", 3, "model._target_=3; expected the import path"),
    ("er", "scheduler", [1], "scheduler=[1]; expected a section with a _target_"),
    ("er", "stream.validation_fraction", ["???"], "validation_fraction"),
    ("er", "stream.n_tasks", "???", "stream.n_tasks is not set; expected a value"),
    ("er", "stream.augment", False, "stream.augment=False; expected a section with a _target_ or null"),
    ("er", "accelerator", {}, "accelerator={}; expected a word"),
    ("er", "trainer.max_epochs", 0.5, "trainer.max_epochs=0.5; expected an integer or null"),
    ("er", "trainer.devices", 2**31, "trainer.devices=2147483648; expected at most 1024 processes"),
    ("er", "trainer.limit_test_batches", 0, "limit_test_batches=0; expected test data"),
    ("er", "model.loss", [[1]], "model.loss=[[1]]; expected a section with a _target_ or null"),
    ("er", "model.metric", 1.5, "model.metric=1.5; expected a section with a _target_ or null"),
    ("er", "callbacks", 3, "callbacks=3; expected a mapping or null"),
    ("er", "callbacks.er", 3, "callbacks.er=3; expected a section with a _target_, or null"),
    ("er", "callbacks.er.label_fn", 0, "callbacks.er.label_fn=0; expected a section with a _target_ or null"),
    ("er", "callbacks.er.state_path", "", "state_path=''; expected a file that can be written"),
    ("er", "callbacks.er.state_path", "/", "state_path='/'; expected a file"),
    ("er", "callbacks.er.state_path", "a" * 3000, "state_path='aaa"),
    ("er", "callbacks.er.state_path", "x\0y", "state_path='x\\x00y'"),
    ("er", "prune.after", -1, "prune.after=-1; expected an integer >= 1"),
    ("lora", "callbacks.lora.head", None, "head=None with FineTuningModule; expected its head trained whole"),
    ("lora", "callbacks.lora.head", [], "head=[] with FineTuningModule"),
    ("ia3", "callbacks.ia3.targets", [], "targets=[]; expected names of layers, or 'auto'"),
    ("linear_probe", "callbacks.linear_probe.groups", [], "groups=[]; expected a list of DepthGroup"),
    ("last_k", "callbacks.last_k.groups", -4, "groups=-4; expected a list of DepthGroup"),
    ("auto_freeze", "callbacks.auto_freeze.keep_frozen", "x", "keep_frozen: selector 'x'"),
    ("lora", "callbacks.lora.export", "", "export=''; expected a file"),
]


@pytest.mark.parametrize(("method", "key", "value", "line"), CONFIGS)
def test_config(method: str, key: str, value: Any, line: str):
    config = config_of(method)
    OmegaConf.update(config, key, value, merge=False, force_add=True)
    outcome = attempt(config, [f"{key}={value}"], method)
    assert outcome.kind == "refused", outcome.text
    assert line in outcome.text
    assert ". HINT: " in outcome.text


def test_a_state_of_another_method(tmp_path):
    path = str(tmp_path / "state.ckpt")
    for method, kind in (("er", "finished"), ("lwf", "refused"), ("bic", "refused")):
        config = config_of(method)
        OmegaConf.update(config, f"callbacks.{method}.state_path", path, force_add=True)
        outcome = attempt(config, [], method)
        assert outcome.kind == kind, outcome.text
        assert outcome.kind == "finished" or f"state_path={path!r}" in outcome.text


def pairs(x: torch.Tensor, y: list[Any]) -> Items:
    return Items(list(zip(x, y, strict=True)))


X, Y = torch.rand(12, 3), [0, 1] * 6
DATA = [
    (TensorDataset(torch.rand(12), torch.tensor(Y)), r"inputs of shape \(\)"),
    (TensorDataset(torch.rand(12, 0), torch.tensor(Y)), r"inputs of shape \(0,\)"),
    (TensorDataset(X.to(torch.complex64), torch.tensor(Y)), "inputs of torch.complex64; expected real numbers"),
    (pairs(X.to(torch.complex64), Y), "complex numbers"),
    (
        TensorDataset(X, torch.tensor([*Y[:-1], 10**9])),
        "label 1000000000 at index 11; expected an integer from 0",
    ),
    (Items([(None, y) for y in Y]), "item .* of the data set"),
    (Items([*pairs(X, Y).items[:-1], ValueError("gone")]), r"train item 11 \(ValueError: gone\)"),
    (Items([*pairs(X, Y).items[:-1], 3]), "train item 11"),
]


@pytest.mark.parametrize(("dataset", "line"), DATA)
def test_data_set(dataset: Any, line: str):
    with pytest.raises(InputError, match=line):
        custom(dataset)


def test_ragged_inputs_are_named():
    data = ItemData(Items([(torch.rand(3 + (i == 4)), i % 2) for i in range(12)]), None, torch.tensor(Y))
    with pytest.raises(InputError, match=r"input of shape \(4,\) at item 4"):
        data.batch(torch.arange(len(data)))


def test_test_inputs_of_another_shape():
    with pytest.raises(InputError, match=r"training inputs of shape \(3,\) and test inputs of \(4,\)"):
        custom(pairs(X, Y), pairs(torch.rand(12, 4), Y))
