import logging

import pytest
import torch
from torch import nn

from lightning_cl.functional import _products, diagonal_fisher
from lightning_cl.functional._importance_pass import subset
from lightning_cl.functional._operations_conv import ConvOperation
from lightning_cl.functional.masking import mask_logits
from tests.functional.fisher_cases import CASES, batches, oracle


def check_close(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / value.norm().clamp_min(1e-30)
        assert error <= tolerance, (name, float(error))


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_autograd_loop(case, labels):
    module, data = CASES[case]()
    found = diagonal_fisher(module, batches(data, 4), labels=labels)
    check_close(found, oracle(module, data, labels))
    assert all(value.dtype == torch.float32 for value in found.values())


@pytest.mark.parametrize(
    ("case", "looped"),
    [
        ("mlp", []),
        ("convolutions", []),
        ("sequence", []),
        ("token model", []),
        ("tied", []),
        ("called twice", []),
        ("functional use", []),
        ("samples second", []),
        ("weight norm", [f"first.parametrizations.weight.original{i}" for i in (0, 1)]),
    ],
)
def test_which_way_each_parameter_takes(case, looped, caplog):
    module, data = CASES[case]()
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        diagonal_fisher(module, batches(data, 4))
    (record,) = caplog.records
    text = record.getMessage()
    assert f", {len(looped)} sample by sample" in text
    for name in looped:
        assert name in text


@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
def test_the_batch_size_does_not_matter(labels):
    module, data = CASES["mlp"](n=64)
    results = [diagonal_fisher(module, batches(data, size), labels=labels, n_draws=2, seed=3) for size in (1, 7, 64)]
    check_close(results[0], {name: value.double() for name, value in results[2].items()})
    check_close(results[1], {name: value.double() for name, value in results[2].items()})


def test_mc_converges_to_exact_and_follows_its_seed():
    module, data = CASES["mlp"](n=8)
    exact = {name: value.double() for name, value in diagonal_fisher(module, batches(data, 8)).items()}
    check_close(diagonal_fisher(module, batches(data, 8), labels="mc", n_draws=4000), exact, tolerance=0.05)
    one, again, other = (diagonal_fisher(module, batches(data, 8), labels="mc", seed=seed) for seed in (0, 0, 1))
    assert all(one[name].equal(again[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


def test_mc_mean_over_draws_is_the_mean_of_oracles():
    module, data = CASES["mlp"](n=3)
    drawn = _drawn(module, data)
    expected = [oracle(module, (data[0], labels), "empirical") for labels in drawn.t()]
    mean = {name: sum(value[name] for value in expected) / len(expected) for name in expected[0]}
    check_close(diagonal_fisher(module, batches(data, 2), labels="mc", n_draws=5, seed=11), mean)


def _drawn(module, data):
    from lightning_cl.functional._cotangents import draw
    from lightning_cl.functional.seeding import generator

    return draw(module(data[0]).detach().softmax(dim=1), 5, generator(11, "fisher", "labels"))


@pytest.mark.parametrize("value", ["finite", "infinite"])
@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
def test_masked_logits(labels, value, monkeypatch):
    module, (x, _) = CASES["mlp"](n=6)
    active = torch.tensor([True, False, True, False, True])
    y = torch.tensor([0, 2, 4, 0, 2, 4])
    calls = []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: calls.append(1) or original(*a, **k))

    def logits_fn(module, batch):
        logits = module(batch[0])
        if value == "finite":
            return mask_logits(logits, active), batch[1]
        return logits.masked_fill(~active, -torch.inf), batch[1]

    found = diagonal_fisher(module, batches((x, y), 6), labels=labels, logits_fn=logits_fn, n_draws=3)
    # one less than there are active classes; three more for the check of the first batch
    assert len(calls) == {"exact": 2, "mc": 3}.get(labels, 1) + 3
    assert (found["4.weight"][~active] == 0).all()
    if labels != "mc":
        smaller = nn.Sequential(*module[:-1], nn.Linear(5, 3))
        with torch.no_grad():
            smaller[-1].weight.copy_(module[-1].weight[active])
            smaller[-1].bias.copy_(module[-1].bias[active])
        expected = oracle(smaller, (x, y // 2), labels)
        found["4.weight"], found["4.bias"] = found["4.weight"][active], found["4.bias"][active]
        check_close(found, expected)


def test_loss_fn_without_logits():
    module, data = CASES["mlp"](n=6)

    def loss_fn(module, batch):
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    check_close(diagonal_fisher(module, batches(data, 4), loss_fn=loss_fn), oracle(module, data, "empirical"))


def test_side_effects():
    module, data = CASES["resnet18"](n=2)
    module.train()
    module.layer1.eval()
    flags = [part.training for part in module.modules()]
    before = {name: value.clone() for name, value in module.state_dict().items()}
    marker = torch.ones_like(module.fc.weight)
    module.fc.weight.grad = marker
    state = torch.get_rng_state()
    with torch.no_grad():
        found = diagonal_fisher(module, batches(data, 2), labels="empirical")
    with torch.inference_mode():
        again = diagonal_fisher(module, [(data[0], data[1])], labels="empirical")
    assert all(found[name].equal(again[name]) for name in found)
    assert [part.training for part in module.modules()] == flags
    assert module.fc.weight.grad is marker
    assert (marker == 1).all()
    assert all(value.grad is None for name, value in module.named_parameters() if name != "fc.weight")
    assert all(value.equal(before[name]) for name, value in module.state_dict().items())
    assert torch.get_rng_state().equal(state)
    assert not any(value.requires_grad for value in found.values())


def test_exceptions_leave_nothing_behind():
    module, data = CASES["mlp"]()
    module.train()

    def logits_fn(module, batch):
        module(batch[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diagonal_fisher(module, batches(data, 4), logits_fn=logits_fn)
    assert all(part.training for part in module.modules())
    assert not any(part._forward_hooks for part in module.modules())


def test_parameters_can_be_chosen_and_frozen_ones_are_left_out():
    module, data = CASES["mlp"]()
    everything = {name: value.double() for name, value in diagonal_fisher(module, batches(data, 4)).items()}
    module[0].requires_grad_(False)
    rest = {name: value for name, value in everything.items() if not name.startswith("0.")}
    check_close(diagonal_fisher(module, batches(data, 4)), rest)
    check_close(
        diagonal_fisher(module, batches(data, 4), parameters={"mine": module[4].bias}), {"mine": everything["4.bias"]}
    )


def test_unused_parameters_are_zero():
    module, data = CASES["mlp"]()
    module.extra = nn.Linear(3, 3)
    module.extra.forward = None
    used = module[:-1]
    found = diagonal_fisher(module, batches(data, 4), logits_fn=lambda m, b: (used(b[0]), b[1]))
    assert (found["extra.weight"] == 0).all()
    assert (found["0.weight"] > 0).any()


def test_a_subset_does_not_depend_on_the_batch_size():
    module, data = CASES["mlp"](n=40)
    dataset = torch.utils.data.TensorDataset(*data)

    def loader(size):
        return torch.utils.data.DataLoader(dataset, batch_size=size)

    one, two, other = (diagonal_fisher(module, loader(s), n_samples=10, seed=k) for s, k in ((3, 0), (40, 0), (40, 1)))
    check_close(one, {name: value.double() for name, value in two.items()})
    assert not torch.allclose(two["0.weight"], other["0.weight"])
    # without a length: the first ones
    first = diagonal_fisher(module, batches(data, 7), n_samples=10)
    check_close(first, oracle(module, (data[0][:10], data[1][:10]), "exact"))


def test_a_subset_is_read_in_whole_batches():
    """A few samples of each of many batches cost as much as all of them."""
    tensors = torch.arange(60.0).view(60, 1), torch.arange(60)
    dataset = torch.utils.data.TensorDataset(*tensors)
    found = list(subset(torch.utils.data.DataLoader(dataset, batch_size=10), 21, seed=3))
    assert len(found) <= 4
    assert sum(len(x) for x, _ in found) == 21
    assert all(len(x) <= 10 and torch.equal(x[:, 0].long(), y) for x, y in found)
    chosen = torch.cat([y for _, y in found])
    assert torch.equal(chosen, chosen.sort().values)
    assert len(set(chosen.tolist())) == 21


@pytest.mark.parametrize(
    "batches_",
    [
        [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(2, 5), torch.zeros(2))],  # it would have to be padded
        [{"x": torch.ones(2, 3), "scale": torch.tensor(1.0)}, {"x": torch.ones(2, 3), "scale": torch.tensor(2.0)}],
        [(torch.ones(2, 3), torch.zeros(2)), (torch.ones(2, 3, dtype=torch.float64), torch.zeros(2))],
        [{"x": torch.ones(2, 3)}, {"y": torch.ones(2, 3)}],
        [(torch.ones(2, 3), ["a", "b"]), (torch.ones(2, 3), ["c", "d"])],
    ],
)
def test_what_might_change_when_put_together_stays_apart(batches_):
    class Loader(list):
        dataset = range(4)

    # two samples of four: for some seeds one of each batch
    assert max(len(list(subset(Loader(batches_), 2, seed))) for seed in range(9)) == 2


def test_double_precision_is_kept():
    module, (x, y) = CASES["mlp"]()
    module = module.double()
    found = diagonal_fisher(module, [(x.double(), y)])
    check_close(found, oracle(module, (x, y), "exact"), tolerance=1e-12)
    assert all(value.dtype == torch.float64 for value in found.values())


def test_a_broken_rule_is_noticed(monkeypatch):
    module, data = CASES["convolutions"]()
    right = ConvOperation.patches
    monkeypatch.setattr(ConvOperation, "patches", lambda self, tensor: right(self, tensor).roll(1, dims=2))
    with pytest.raises(RuntimeError, match=r"closed-form gradient of '0.weight' is .* away from autograd's.*HINT"):
        diagonal_fisher(module, batches(data, 4))
    assert not any(part._forward_hooks for part in module.modules())


def test_tokens_taken_for_samples_are_noticed(monkeypatch):
    """The cross terms between tokens would be lost, while the summed gradient stays right."""

    def flattened(total, left, right, power, budget):
        total.addmm_(left.flatten(0, 1).square().mT, right.flatten(0, 1).square())

    module, data = CASES["sequence"]()
    monkeypatch.setattr(_products, "_add_products", flattened)
    with pytest.raises(RuntimeError, match=r"closed-form gradient of 'inner.weight'"):
        diagonal_fisher(module, batches(data, 4), labels="empirical")


@pytest.mark.parametrize("case", ["convolutions", "sequence", "tied"])
def test_memory_bounded_chunks_change_nothing(case):
    module, data = CASES[case]()
    whole = {name: value.double() for name, value in diagonal_fisher(module, batches(data, 6)).items()}
    check_close(diagonal_fisher(module, batches(data, 6), max_bytes=1), whole)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": "true"}, r"labels='true'; expected one of exact, mc, empirical, predicted, .*HINT"),
        ({"n_draws": 0}, r"n_draws=0; expected an integer >= 1.*HINT"),
        ({"n_samples": 0}, r"n_samples=0; expected an integer >= 1.*HINT"),
        ({"logits_fn": max, "loss_fn": max}, r"both logits_fn and loss_fn; expected at most one.*HINT"),
        ({"parameters": {}}, r"no parameters; expected some.*HINT"),
        ({"parameters": {"a": torch.ones(1)}}, r"parameters that need no gradient: \['a'\]; expected.*HINT"),
        ({"logits_fn": lambda m, b: (m(b[0]).sum(1), None)}, r"logits of shape \(4,\); expected \(N, C\).*HINT"),
        ({"loss_fn": lambda m, b: m(b[0])}, r"loss of shape \(1, 5\); expected a scalar.*HINT"),
        ({"labels": "empirical", "logits_fn": lambda m, b: (m(b[0]), None)}, r"targets=None; expected.*HINT"),
        ({"labels": "empirical", "logits_fn": lambda m, b: (m(b[0]), b[1] + 5)}, r"expected labels in \[0, 5\).*HINT"),
        ({"labels": "empirical", "logits_fn": lambda m, b: (m(b[0]), b[1].float())}, r"expected 4 integer.*HINT"),
    ],
)
def test_bad_arguments(arguments, message):
    module, data = CASES["mlp"]()
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(module, batches(data, 4), **arguments)


def test_bad_data():
    module, data = CASES["mlp"]()
    for empty in ([], [(data[0][:0], data[1][:0])]):
        with pytest.raises(ValueError, match=r"loader gave no samples; expected at least one.*HINT"):
            diagonal_fisher(module, empty)
    with pytest.raises(ValueError, match=r"batch with x, at which .* raised TypeError: .*; expected.*HINT"):
        diagonal_fisher(module, [{"x": data[0]}])
    with pytest.raises(ValueError, match=r"batch of type set; expected \(inputs, targets\).*HINT"):
        diagonal_fisher(module, [{1}])
    with torch.no_grad():
        module[4].weight.fill_(torch.nan)
    for labels in ("exact", "mc", "empirical", "predicted"):
        with pytest.raises(ValueError, match=r"Fisher information of '0.weight' is not finite; expected finite.*HINT"):
            diagonal_fisher(module, batches(data, 4), labels=labels)


class _Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class _Cubed(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight**3, self.bias)


@pytest.mark.parametrize(("kind", "looped"), [(_Doubled, 0), (_Cubed, 1)])
def test_what_a_subclass_computes_is_seen(kind, looped, caplog):
    torch.manual_seed(0)
    module, data = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), kind(4, 3)), (torch.randn(6, 5), torch.arange(6) % 3)
    with caplog.at_level(logging.INFO, logger="lightning_cl"):
        found = diagonal_fisher(module, batches(data, 4))
    check_close(found, oracle(module, data, "exact"))
    assert f", {looped} sample by sample" in caplog.records[-1].getMessage()
