"""Every label mode and likelihood against sums over labels written out by hand, in float64."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_cl.functional import diagonal_fisher
from tests.functional.fisher_cases import CASES, batches
from tests.functional.test_fisher import check_close


def squares(module, terms):
    """``sum of weight * (gradient of term)^2`` per parameter; ``terms`` are (weight, scalar with graph)."""
    named = dict(module.named_parameters())
    total = {name: torch.zeros_like(value) for name, value in named.items()}
    for weight, term in terms:
        for name, gradient in zip(named, torch.autograd.grad(term, named.values(), retain_graph=True), strict=True):
            total[name] += weight * gradient.square()
    return total


def mean(rows):
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def double(module):
    return copy.deepcopy(module).double().eval()


def test_probability_weighted():
    module, (x, y) = CASES["mlp"]()
    wide = double(module)
    rows = []
    for i in range(len(y)):
        score = wide(x[i : i + 1].double()).log_softmax(1)[0, y[i]]
        rows.append(squares(wide, [(float(score.exp()), score)]))
    check_close(diagonal_fisher(module, batches((x, y), 4), labels="probability_weighted"), mean(rows))


def test_batch_mean_depends_on_the_batch_size():
    module, (x, y) = CASES["mlp"](n=8)
    wide = double(module)
    rows = []
    for start in (0, 4):
        loss = F.cross_entropy(wide(x[start : start + 4].double()), y[start : start + 4])
        rows.append(squares(wide, [(1.0, loss)]))
    found = diagonal_fisher(module, batches((x, y), 4), labels="batch_mean")
    check_close(found, mean(rows))
    single = diagonal_fisher(module, batches((x, y), 1), labels="batch_mean")
    check_close(
        single, {k: v.double() for k, v in diagonal_fisher(module, batches((x, y), 8), labels="empirical").items()}
    )
    assert found["0.weight"].sum() < 0.8 * single["0.weight"].sum()


def test_top_k_is_exact_for_all_classes_and_unbiased_for_fewer():
    module, data = CASES["mlp"](n=6)
    exact = {name: value.double() for name, value in diagonal_fisher(module, batches(data, 4)).items()}
    check_close(diagonal_fisher(module, batches(data, 4), labels="top_k", top_k=5), exact)
    check_close(diagonal_fisher(module, batches(data, 4), labels="top_k", top_k=7), exact)
    # all but the least likely class: the rest is that class, whatever is drawn
    check_close(diagonal_fisher(module, batches(data, 4), labels="top_k", top_k=4), exact)
    many = diagonal_fisher(module, batches(data, 4), labels="top_k", top_k=2, n_draws=3000)
    check_close(many, exact, tolerance=0.05)
    one, other = (diagonal_fisher(module, batches(data, size), labels="top_k", top_k=2, seed=3) for size in (2, 5))
    check_close(one, {name: value.double() for name, value in other.items()})


def multi_label(n=6):
    module, (x, _) = CASES["mlp"](n=n)
    return module, (x, (torch.arange(n * 5).view(n, 5) % 3 == 0).float())


@pytest.mark.parametrize("labels", ["exact", "empirical", "predicted", "probability_weighted"])
def test_multi_label(labels):
    module, (x, y) = multi_label()
    wide = double(module)
    rows = []
    for i in range(len(x)):
        logits = wide(x[i : i + 1].double())[0]
        s = logits.detach().sigmoid()
        terms = []
        if labels == "exact":  # all 2^5 sets of labels
            for code in range(32):
                y_n = torch.tensor([code >> c & 1 for c in range(5)]).double()
                p = float(torch.where(y_n > 0, s, 1 - s).prod())
                terms.append((p, F.binary_cross_entropy_with_logits(logits, y_n, reduction="sum")))
        else:
            y_n = (s > 0.5).double() if labels == "predicted" else y[i].double()
            weight = float(torch.where(y_n > 0, s, 1 - s).prod()) if labels == "probability_weighted" else 1.0
            terms.append((weight, F.binary_cross_entropy_with_logits(logits, y_n, reduction="sum")))
        rows.append(squares(wide, terms))
    check_close(diagonal_fisher(module, batches((x, y), 4), labels=labels, likelihood="multi_label"), mean(rows))


@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_gaussian(labels):
    module, (x, _) = CASES["mlp"](n=6)
    y, wide = torch.randn(6, 5), double(module)
    rows = []
    for i in range(len(x)):
        f = wide(x[i : i + 1].double())[0]
        terms = [(1.0, f[d]) for d in range(5)] if labels == "exact" else [(1.0, (f - y[i]).square().sum() / 2)]
        rows.append(squares(wide, terms))
    check_close(diagonal_fisher(module, batches((x, y), 4), labels=labels, likelihood="gaussian"), mean(rows))


@pytest.mark.parametrize("likelihood", ["multi_label", "gaussian"])
def test_mc_converges_to_exact(likelihood):
    module, (x, y) = multi_label()
    exact = diagonal_fisher(module, batches((x, y), 4), likelihood=likelihood)
    many = diagonal_fisher(module, batches((x, y), 4), likelihood=likelihood, labels="mc", n_draws=4000)
    check_close(many, {name: value.double() for name, value in exact.items()}, tolerance=0.05)
    one, other = (
        diagonal_fisher(module, batches((x, y), size), likelihood=likelihood, labels="mc", n_draws=2) for size in (2, 5)
    )
    check_close(one, {name: value.double() for name, value in other.items()})


def test_regression_with_one_output_and_no_axis_for_it():
    torch.manual_seed(0)
    module, x, y = (
        nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)),
        torch.randn(5, 3),
        torch.ones(5),
    )
    wide = double(module)
    rows = [squares(wide, [(1.0, wide(x[i : i + 1].double()).sum())]) for i in range(5)]
    check_close(diagonal_fisher(module, [(x, y)], likelihood="gaussian"), mean(rows))


def test_positions_are_drawn_one_by_one():
    """mc over positions, against exact: their labels are independent."""
    from tests.functional.layer_cases import TiedLanguageModel

    torch.manual_seed(0)
    module, x = TiedLanguageModel(), torch.randint(0, 9, (3, 4))
    exact = diagonal_fisher(module, [(x, None)], logits_fn=lambda m, b: (m(b[0]), None))
    many = diagonal_fisher(module, [(x, None)], logits_fn=lambda m, b: (m(b[0]), None), labels="mc", n_draws=3000)
    check_close(many, {name: value.double() for name, value in exact.items()}, tolerance=0.05)
    assert math.isfinite(float(exact["tokens.weight"].sum()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"likelihood": "poisson"}, r"likelihood='poisson'; expected one of classification, .*HINT"),
        ({"labels": "top_k", "top_k": 0}, r"top_k=0; expected an integer >= 1.*HINT"),
        ({"labels": "top_k", "likelihood": "gaussian"}, r"labels='top_k' with likelihood='gaussian'; expected.*HINT"),
        ({"labels": "empirical", "likelihood": "gaussian"}, r"targets of shape \(4,\); expected \(4, 5\).*HINT"),
        ({"fallback": "map"}, r"fallback='map'; expected one of auto, loop, vmap.*HINT"),
        ({"distributed": True}, r"distributed=True without a process group; expected one.*HINT"),
    ],
)
def test_bad_arguments(arguments, message):
    module, data = CASES["mlp"]()
    with pytest.raises(ValueError, match=message):
        diagonal_fisher(module, batches(data, 4), **arguments)


def test_bad_positions():
    module, x = nn.Linear(4, 3), torch.randn(2, 5, 4)
    with pytest.raises(ValueError, match=r"labels='top_k' with logits of shape \(2, 5, 3\); expected \(N, C\).*HINT"):
        diagonal_fisher(module, [(x, None)], labels="top_k", top_k=1)
    with pytest.raises(ValueError, match=r"expected integer labels of shape \(2, 5\).*HINT"):
        diagonal_fisher(module, [(x, torch.zeros(2, dtype=torch.long))], labels="empirical")
