"""The Fisher of whole models: the benchmark's list, Hugging Face batches, half precision, several processes."""

import socket
import sys
from collections import UserDict
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_cl.functional import diagonal_fisher, mas_importance
from tests.functional.fisher_cases import CASES, batches, made, oracle
from tests.functional.layer_cases import Pooled
from tests.functional.test_fisher import check_close

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


def test_the_models_of_the_benchmark_agree_with_float64(caplog):
    pytest.importorskip("transformers")
    import benchmark_importance

    caplog.set_level("INFO", logger="lightning_cl")
    rows = benchmark_importance.agreement()
    assert len(rows) == 8
    for row in rows:
        assert row["ours"] <= row["bar"], row
    assert caplog.text.count(", 0 sample by sample") == len(caplog.records)


def test_batches_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    import benchmark_importance

    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    module, batch = benchmark_importance.bert(**sizes), benchmark_importance.tokens(6, 8, 50, padded=True)
    expected = benchmark_importance.oracle(module, batch)
    for kind in (dict, UserDict, transformers.BatchEncoding):
        found = diagonal_fisher(module, [kind(batch)], labels="empirical")
        for name, value in expected.items():
            if not name.endswith("key.bias"):  # zero but for rounding
                check_close({name: found[name]}, {name: value})


def test_causal_language_models_of_hugging_face(caplog):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=2, n_embd=16, n_head=2, vocab_size=30, n_positions=12, bos_token_id=0, eos_token_id=0
    )
    module, ids = transformers.GPT2LMHeadModel(config).eval(), torch.randint(0, 30, (4, 7))

    def logits_fn(module, batch):
        return module(input_ids=batch["input_ids"]).logits[:, :-1], batch["input_ids"][:, 1:]

    caplog.set_level("INFO", logger="lightning_cl")
    found = diagonal_fisher(module, [{"input_ids": ids}], labels="empirical", logits_fn=logits_fn)
    assert ", 0 sample by sample" in caplog.text
    wide = module.double()
    named = dict(wide.named_parameters())
    expected = {name: torch.zeros_like(value) for name, value in named.items()}
    for row in ids:
        loss = wide(input_ids=row[None], labels=row[None]).loss
        for name, gradient in zip(named, torch.autograd.grad(loss, named.values()), strict=True):
            expected[name] += gradient.square() / len(ids)
    largest = max(float(value.norm()) for value in expected.values())
    check_close(
        found,
        {name: value for name, value in expected.items() if value.norm() > 1e-12 * largest}
        | {name: found[name].double() for name, value in expected.items() if value.norm() <= 1e-12 * largest},
    )


@given(
    n=st.integers(1, 6),
    d=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    transposed=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_convolutions_of_any_shape(n, d, groups, kernel, stride, padding, dilation, transposed):
    kinds = (
        [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d]
        if transposed
        else [nn.Conv1d, nn.Conv2d, nn.Conv3d]
    )
    options = {
        "groups": groups,
        "stride": stride,
        "padding": min(padding, dilation * (kernel - 1)),
        "dilation": dilation,
    }
    module, data = made(lambda: Pooled(kinds[d - 1](2, 4, kernel, **options), 4), (2, *[6, 5, 5][:d]), 3, n)
    found = diagonal_fisher(module, batches(data, 4), labels="empirical")
    check_close(found, oracle(module, data, "empirical"))


@given(
    n=st.integers(1, 7),
    positions=st.lists(st.integers(1, 4), max_size=2),
    size=st.integers(1, 5),
    out=st.integers(2, 5),
    bias=st.booleans(),
    first=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_linear_layers_of_any_shape(n, positions, size, out, bias, first):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(size, 4, bias=bias), nn.Linear(4, out)

        def forward(self, x):
            y = torch.tanh(self.inner(x if first or x.dim() < 3 else x.transpose(0, 1)))
            y = y if first or x.dim() < 3 else y.transpose(0, 1)
            return self.head(y.flatten(1, -2).mean(1) if y.dim() > 2 else y)

    module, data = made(Net, (*positions, size), out, n)
    check_close(diagonal_fisher(module, batches(data, 3)), oracle(module, data, "exact"))


@pytest.mark.parametrize("case", ["mlp", "convolutions"])
def test_autocast_accumulates_in_full_precision(case):
    module, data = CASES[case]()
    with torch.autocast("cpu", torch.bfloat16):
        found = diagonal_fisher(module, batches(data, 4))
        mas = mas_importance(module, batches(data, 4))
    assert {value.dtype for value in [*found.values(), *mas.values()]} == {torch.float32}
    exact = oracle(module, data, "exact")
    error = sum((found[k].double() - v).norm() for k, v in exact.items()) / sum(v.norm() for v in exact.values())
    assert error < 0.05


def _worker(rank, port, results):
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    module, data = CASES["mlp"](n=10)
    results[rank] = diagonal_fisher(module, batches(data, 4), distributed=True, n_samples=9)
    dist.destroy_process_group()


def test_two_processes_add_up():
    import torch.multiprocessing as mp

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_worker, (port, results), nprocs=2)
        found = dict(results)
    module, data = CASES["mlp"](n=10)
    whole = diagonal_fisher(module, batches(data, 4), n_samples=9)
    check_close(found[0], {name: value.double() for name, value in whole.items()})
    assert all(found[1][name].equal(value) for name, value in found[0].items())


def test_loss_without_labels_is_not_needed_for_mas():
    module, data = CASES["mlp"](n=4)
    with_labels = mas_importance(module, [data])
    without = mas_importance(module, [(data[0],)])
    assert all(with_labels[name].equal(value) for name, value in without.items())
    masked = mas_importance(module, [data], outputs_fn=lambda m, b: (F.pad(m(b[0]), (0, 2), value=-1e30), None))
    check_close(masked, {name: value.double() for name, value in with_labels.items()})
