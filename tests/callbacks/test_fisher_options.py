"""Which Fisher the callbacks take: likelihoods, large label sets, memory."""

import logging
from collections import UserDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl import EWC, MAS, KroneckerEWC, RWalk
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher, mas_importance
from lightning_cl.functional.kfac import kronecker_factors
from tests.callbacks.importance_examples import Adapted

METHODS = [EWC, RWalk, KroneckerEWC]


class Outputs(Adapted):
    """A step of another loss, with targets of the outputs' shape."""

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.net(x), y)


def made(as_dict: bool = False) -> tuple[Any, list[Any]]:
    module, generator = Outputs(), torch.Generator().manual_seed(0)
    x, y = torch.randn(6, 4, generator=generator), torch.rand(6, 3, generator=generator).round()
    parts = [slice(0, 4), slice(4, 6)]
    return module, [{"x": x[part], "targets": y[part]} if as_dict else (x[part], y[part]) for part in parts]


@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", ["multi_label", "gaussian"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_other_likelihoods_need_no_logits_fn(likelihood: str, labels: str, as_dict: bool):
    module, loader = made(as_dict)
    ewc = EWC(1.0, likelihood=likelihood, labels=labels)
    ewc.consolidate(None, module, loader)
    pairs = [tuple(batch.values()) if as_dict else batch for batch in loader]
    expected = diagonal_fisher(module, pairs, likelihood=likelihood, labels=labels)
    for name, value in expected.items():
        torch.testing.assert_close(ewc.importance[name], value)


def test_kronecker_factors_of_another_likelihood():
    module, loader = made()
    method = KroneckerEWC(1.0, likelihood="multi_label")
    method.consolidate(None, module, loader)
    expected = kronecker_factors(module, loader, likelihood="multi_label")
    for name, factors in expected.items():
        torch.testing.assert_close(method.blocks[name].G[0], factors.G)


@pytest.mark.parametrize("method", METHODS)
def test_options_reach_the_pass(method: Any, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, Any] = {}

    def stop(*args: Any, **options: Any) -> Any:
        seen.update(options)
        raise RuntimeError("seen")

    monkeypatch.setattr("lightning_cl.callbacks._importance.diagonal_fisher", stop)
    monkeypatch.setattr("lightning_cl.callbacks.kfac_ewc.kronecker_fisher", stop)
    module, loader = made()
    given = {"labels": "top_k", "top_k": 2, "n_draws": 3, "max_bytes": 99}
    callback = method(1.0, **given, logits_fn=lambda module, batch: (module(batch[0]), None))
    with pytest.raises(RuntimeError, match="seen"):
        callback.consolidate(None, module, loader)
    assert {key: seen[key] for key in given} == given
    assert seen["likelihood"] == "classification"


def test_top_k_over_all_classes_is_exact():
    module, loader = made()
    few, all_ = (EWC(1.0, labels=labels, logits_fn=lambda module, batch: (module(batch[0]), None), **options)
                 for labels, options in (("top_k", {"top_k": 1000}), ("exact", {})))  # fmt: skip
    for ewc in (few, all_):
        ewc.consolidate(None, module, loader)
    for name, value in all_.importance.items():
        torch.testing.assert_close(few.importance[name], value)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "poisson"}, "likelihood='poisson'; expected one of classification, multi_label, gaussian"),
        ({"labels": "top_k", "likelihood": "gaussian"}, "labels='top_k' with likelihood='gaussian'; expected exact"),
        ({"labels": "top_k", "top_k": 0}, "top_k=0; expected an integer >= 1"),
        ({"max_bytes": 0}, "max_bytes=0; expected an integer >= 1. HINT: leave it out for 16 MiB"),
    ],
)
def test_options_that_do_not_fit_are_refused(method: Any, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        method(1.0, **options)


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_targets_that_are_no_labels_are_not_taken_for_labels(labels: Any):
    module, loader = made()
    ewc = EWC(1.0, labels=labels, logits_fn=lambda module, batch: (module(batch[0]), batch[1]))
    with pytest.raises(
        InputError, match=r"targets of torch.float32 with likelihood='classification'; expected 4 integer"
    ):
        ewc.consolidate(None, module, loader)


@pytest.mark.parametrize("batch", [[[1]], [{"one": torch.ones(6, 4), "two": torch.ones(6, 3)}]], ids=["list", "dict"])
def test_a_batch_without_obvious_inputs_is_refused(batch: Any):
    module, _ = made()
    with pytest.raises(InputError, match=r"HINT: give (a )?logits_fn"):
        EWC(1.0, likelihood="gaussian").consolidate(None, module, batch)


class Named(Adapted):
    """As Hugging Face has it: named inputs, an object with logits."""

    def forward(self, features_a: Tensor, features_b: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.net(features_a + features_b)
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(**batch).loss


class Encoding(UserDict):
    """A mapping that is no dict."""


@pytest.mark.parametrize("kind", [dict, Encoding])
def test_named_inputs_and_logits_are_found(kind: Any, caplog: pytest.LogCaptureFixture):
    module, generator = Named(), torch.Generator().manual_seed(1)
    a, b = (torch.randn(6, 4, generator=generator) for _ in range(2))
    y = torch.randint(0, 3, (6,), generator=generator)
    loader = [kind(features_a=a[p], features_b=b[p], labels=y[p]) for p in (slice(0, 4), slice(4, 6))]
    sums = [(a + b, y)]
    ewc, mas, kfac = EWC(1.0), MAS(1.0), KroneckerEWC(1.0)
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        for callback in (ewc, mas, kfac):
            callback.consolidate(None, module, loader)
    assert not caplog.records
    for found, expected in (
        (ewc.importance, diagonal_fisher(module.net, sums)),
        (mas.importance, mas_importance(module.net, sums)),
    ):
        for name, value in expected.items():
            torch.testing.assert_close(found[f"net.{name}"], value)
    for name, factors in kronecker_factors(module.net, sums).items():
        torch.testing.assert_close(kfac.blocks[f"net.{name}"].A[0], factors.A)


def test_named_inputs_that_the_forward_does_not_take_are_said(caplog: pytest.LogCaptureFixture):
    class Step(Named):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return nn.functional.cross_entropy(self.net(batch["extra"]), batch["labels"])

    loader = [{"extra": torch.ones(4, 4), "labels": torch.tensor([0, 1, 2, 0])}]
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        EWC(1.0).consolidate(None, Step(), loader)
    assert "module(**batch) raises ValueError" in caplog.text
    with pytest.raises(InputError, match=r"module\(\*\*batch\), which raises ValueError: .*HINT: give outputs_fn="):
        MAS(1.0).consolidate(None, Step(), loader)
