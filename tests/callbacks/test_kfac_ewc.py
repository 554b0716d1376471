"""Kronecker-factored EWC inside real Trainers, against autograd of the quadratic form with the explicit product."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_cl import EWC, KroneckerEWC
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher, kronecker_factors
from tests.callbacks.ewc_examples import Gradients, Net, data
from tests.callbacks.replay_examples import fit


class Images(Net):
    """A convolution with stride and padding, a norm, and a head without bias."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            conv = nn.Conv2d(1, 3, 2, stride=2, padding=1)
            self.net = nn.Sequential(
                nn.Unflatten(1, (1, 2, 2)),
                conv,
                nn.GroupNorm(1, 3),
                nn.Tanh(),
                nn.Flatten(),
                nn.Linear(12, 3, bias=False),
            )


def separate_terms(module: Any, n_tasks: int) -> list[Any]:
    """Explicit Fisher blocks and anchors of a task each, from fits in turn; the module is left after the last."""
    terms = []
    for task in range(n_tasks):
        loader = data(task, dtype=module.dtype)
        fit(module, loader)
        factors = kronecker_factors(module, loader).values()
        blocks = [(f.layer.weight, f.layer.bias, torch.kron(f.A, f.G)) for f in factors]
        taken = {name for f in factors for name in f.layer.names}
        fisher = {name: f for name, f in diagonal_fisher(module, loader).items() if name not in taken}
        terms.append((blocks, fisher, {name: p.detach().clone() for name, p in module.named_parameters()}))
    return terms


def oracle(module: Any, at: list[Tensor], terms: list[Any], lambda_: float) -> list[Tensor]:
    """Gradient, by autograd in float64, of the sum over tasks of the penalties."""
    leaves = {name: p.double().requires_grad_() for (name, _), p in zip(module.named_parameters(), at, strict=True)}
    value = torch.zeros((), dtype=torch.float64)
    for blocks, fisher, anchor in terms:
        change = {name: leaf - anchor[name].double() for name, leaf in leaves.items()}
        for weight, bias, block in blocks:
            columns = [change[bias][:, None]] if bias else []
            vec = torch.cat([*columns, change[weight].flatten(1)], 1).T.reshape(-1)
            value = value + lambda_ / 2 * vec @ block.double() @ vec
        for name, f in fisher.items():
            value = value + lambda_ / 2 * (f.double() * change[name] ** 2).sum()
    return list(torch.autograd.grad(value, list(leaves.values())))


def start(method: KroneckerEWC, module: Any, terms: list[Any]) -> None:
    """Give a callback the same tasks, one after the other, as if it had learned them."""
    for task, (_, _, anchor) in enumerate(terms):
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(anchor[name])
        method.consolidate(None, module, data(task, dtype=module.dtype))


PARITY: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 4},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "manual": {},
    "maximize": {},
}


@pytest.mark.parametrize("kind", [Net, Images])
@pytest.mark.parametrize("case", PARITY)
def test_gradient_is_that_of_the_explicit_products_of_three_tasks(case: str, kind: Any):
    module = kind(manual=case == "manual")
    module.double() if case != "bf16-mixed" else module.float()
    terms = separate_terms(module, 3)
    # a manually optimized step returns no loss to compare with, so it has to be told where the logits are
    told = {"logits_fn": lambda module, batch: (module(batch[0]), batch[1])} if case == "manual" else {}
    method = KroneckerEWC(3.0, consolidate="manual", **told)
    start(method, module, terms)
    assert set(method.importance) == ({"net.2.weight", "net.2.bias"} if kind is Images else set())
    if case == "maximize":
        module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.02, maximize=True)
    before, after = Gradients(), Gradients()
    fit(module, data(3, dtype=module.dtype), before, method, after, max_epochs=1, **PARITY[case])
    assert len(after.seen) == (1 if case == "accumulate" else 4)
    wanted, sign = 1e-5 if case == "bf16-mixed" else 1e-9, -1 if case == "maximize" else 1
    for step, parameters in enumerate(after.at):
        expected = oracle(module, parameters, terms, 3.0)
        for own, total, one in zip(before.seen[step], after.seen[step], expected, strict=True):
            assert float((sign * (total - own) - one).norm()) <= wanted * max(1.0, float(one.norm()))
    assert max(float(g.norm()) for g in oracle(module, after.at[-1], terms, 3.0)) > 1e-2, "the penalty does something"


def learned(*callbacks: Any, optimizer: str = "SGD", n_tasks: int = 3) -> Tensor:
    module = Net(optimizer=optimizer)
    torch.manual_seed(5)
    for task in range(n_tasks):
        fit(module, data(task, shuffle=True), *callbacks)
    return module.weights


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_lambda_zero_is_bit_identical_to_no_callback_and_lambda_is_not(optimizer: str):
    naive = learned(optimizer=optimizer)
    assert torch.equal(naive, learned(KroneckerEWC(0.0), optimizer=optimizer))
    per_task = learned(KroneckerEWC(10.0), optimizer=optimizer)
    others = [naive, learned(EWC(10.0), optimizer=optimizer), learned(KroneckerEWC(10.0, accumulate="sum"))]
    assert all(float((per_task - other).abs().max()) > 1e-4 for other in others)


def test_it_keeps_what_matters_to_the_first_task():
    module, method = Net(), KroneckerEWC(200.0)
    fit(module, data(0), method, max_epochs=10)
    naive = Net()
    naive.load_state_dict(module.state_dict())
    old = module.weights
    blocks = dict(method.blocks)
    fit(module, data(1), method)
    fit(naive, data(1))
    moved = []
    for net in (module, naive):
        named = dict(net.named_parameters())
        changes = [(block, block.layer.matrix(named) - block.anchor) for block in blocks.values()]
        moved.append(sum(float((d * (block.G[0] @ d @ block.A[0])).sum()) for block, d in changes))
    assert moved[0] < 0.5 * moved[1]
    assert not torch.equal(module.weights, old), "it still learns"


@pytest.mark.parametrize(("accumulate", "per_task"), [("tasks", True), ("sum", False)])
def test_state_grows_with_tasks_only_where_it_is_said(accumulate: Any, per_task: bool):
    module, method, sizes = Net(), KroneckerEWC(1.0, accumulate=accumulate), []
    for task in range(4):
        fit(module, data(task), method, max_epochs=1)
        sizes.append(method.nbytes)
    factors = 4 * (5**2 + 8**2 + 9**2 + 3**2)
    matrices = 4 * (8 * 5 + 3 * 9)
    pulls = [1, 2, 2, 2] if per_task else [1] * 4
    assert sizes == [factors * (t + 1 if per_task else 1) + matrices * pulls[t] for t in range(4)]
    assert [block.n_tasks for block in method.blocks.values()] == [4, 4]


def test_rows_that_a_head_gains_are_free_until_their_task_is_over():
    module, method = Net(), KroneckerEWC(5.0)
    fit(module, data(0), method)
    block = method.blocks["net.2.weight"]
    head = nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = module.net[2].weight, module.net[2].bias
    module.net[2] = head
    before, after = Gradients(), Gradients()
    fit(module, data(1), before, method, after, max_epochs=1)
    for step, at in enumerate(after.at):
        weight, bias = (after.seen[step][i] - before.seen[step][i] for i in (2, 3))
        assert torch.equal(weight[3:], torch.zeros(2, 8))
        assert torch.equal(bias[3:], torch.zeros(2))
        change = torch.cat([at[3][:3, None], at[2][:3]], 1) - block.anchor
        expected = 5.0 * block.G[0] @ change @ block.A[0]
        torch.testing.assert_close(weight[:3], expected[:, 1:], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(bias[:3], expected[:, 0], rtol=1e-3, atol=1e-5)
    grown = method.blocks["net.2.weight"]
    assert (grown.G.shape, grown.anchor.shape) == ((2, 5, 5), (5, 9))
    assert bool(grown.G[1, 3:].any())


def test_frozen_parameters_are_skipped_and_come_in_when_they_thaw():
    module, method = Net(), KroneckerEWC(1.0)
    module.net[0].requires_grad_(False)
    fit(module, data(0), method)
    assert set(method.blocks) == {"net.2.weight"}
    module.net[0].requires_grad_(True)
    module.net[2].weight.requires_grad_(False)
    head, kept = method.blocks["net.2.weight"], module.net[2].weight.detach().clone()
    fit(module, data(1), method)
    assert method.blocks["net.0.weight"].n_tasks == 1
    assert method.blocks["net.2.weight"].n_tasks == 1, "what is frozen keeps its factors"
    assert torch.equal(method.blocks["net.2.weight"].G, head.G)
    assert torch.equal(module.net[2].weight, kept)
    assert set(method.importance) == {"net.2.bias"}, "a bias without its weight has the diagonal penalty"


def test_parameters_are_chosen_by_name_and_size():
    module = Images()
    for options, blocks, diagonal in (
        ({"exclude": r"net\.1\."}, {"net.5.weight"}, {"net.2.weight", "net.2.bias"}),
        ({"include": r"net\.[12]"}, {"net.1.weight"}, {"net.2.weight", "net.2.bias"}),
        ({"rest": "none"}, {"net.1.weight", "net.5.weight"}, set()),
        ({"max_size": 11}, {"net.1.weight"}, {"net.2.weight", "net.2.bias", "net.5.weight"}),
        ({"max_size": None}, {"net.1.weight", "net.5.weight"}, {"net.2.weight", "net.2.bias"}),
    ):
        method = KroneckerEWC(1.0, **options)
        method.consolidate(None, module, data(0))
        assert (set(method.blocks), set(method.importance)) == (blocks, diagonal)


@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
@pytest.mark.parametrize("n_samples", [None, 7])
def test_every_kind_of_label_is_passed_on(labels: Any, n_samples: int | None):
    module = Net()
    method = KroneckerEWC(1.0, labels=labels, n_samples=n_samples, n_draws=3, seed=4)
    method.consolidate(None, module, data(0))
    expected = kronecker_factors(module, data(0), labels=labels, n_samples=n_samples, n_draws=3, seed=4)
    for name, factors in expected.items():
        torch.testing.assert_close(method.blocks[name].A[0], factors.A)
        torch.testing.assert_close(method.blocks[name].G[0], factors.G)


def test_the_schedule_scales_the_penalty_and_clipping_holds_it():
    module, method, after = Net(), KroneckerEWC(1.0, lambda_schedule=[2.0, 0.5], consolidate="manual"), Gradients()
    method.consolidate(None, module, data(0))
    with torch.no_grad():
        module.net[0].weight += 1.0
    before = Gradients()
    fit(module, data(1), before, method, after, max_steps=1)
    assert method.strength == 2.0
    pull = torch.cat([(a - b).flatten() for a, b in zip(after.seen[0], before.seen[0], strict=True)])
    named = {name: p for (name, _), p in zip(module.named_parameters(), after.at[0], strict=True)}
    once = [block.gradient(block.layer.matrix(named)) for block in method.blocks.values()]
    torch.testing.assert_close(pull.norm(), 2.0 * torch.cat([g.flatten() for g in once]).norm())


@pytest.mark.parametrize(("lambda_", "warned"), [(1e-3, False), (1e6, True)])
def test_warns_where_sgd_cannot_be_stable(lambda_: float, warned: bool, caplog: pytest.LogCaptureFixture):
    module, method = Net(lr=0.1), KroneckerEWC(lambda_, consolidate="manual")
    method.consolidate(None, module, data(0))
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(module, data(1), method, max_steps=1)
    text = [r.getMessage() for r in caplog.records if "SGD diverges" in r.getMessage()]
    assert bool(text) == warned
    if warned:
        blocks = method.blocks.values()
        largest = max(float(torch.linalg.eigvalsh(torch.kron(b.A[0], b.G[0])).max()) for b in blocks)
        limit = float(text[0].rpartition("HINT: lower lambda_ to below ")[2])
        assert limit == pytest.approx(2 / (0.1 * largest), rel=0.05)
        with pytest.raises(InputError, match=r"SGD diverges on this penalty; expected a stable penalty. HINT: lower"):
            fit(module, data(1), KroneckerEWC_of(method, unstable="error"), max_steps=1)


def KroneckerEWC_of(method: KroneckerEWC, **options: Any) -> KroneckerEWC:
    again = KroneckerEWC(method.lambda_, consolidate="manual", **options)
    again.load_state_dict(method.state_dict())
    return again


def test_a_step_that_lightning_does_not_see_is_refused():
    class Hidden(Net):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(self(batch[0]), batch[1]))
            optimizer.step()

    method = KroneckerEWC(1.0, logits_fn=lambda module, batch: (module(batch[0]), batch[1]))
    with pytest.raises(InputError, match=r"a step of SGD that Lightning does not see.* HINT: do not pass"):
        fit(Hidden(manual=True), data(0), method)


class Regression(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])


def test_modules_without_logits_are_refused_when_training_starts():
    x = torch.randn(12, 4)
    loader = DataLoader(TensorDataset(x, x[:, :3]), batch_size=6)
    with pytest.raises(
        InputError, match=r"Regression, whose logits are not found: .* HINT: give logits_fn=.*; EWC needs"
    ):
        fit(Regression(), loader, KroneckerEWC(1.0))


def test_batches_that_cannot_be_split_are_refused():
    class Graph(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch["x"]), batch["y"])

    def collate(samples: Any) -> Any:
        return {
            "x": torch.stack([x for x, _ in samples]),
            "y": torch.stack([y for _, y in samples]),
            "e": torch.zeros(2),
        }

    loader = DataLoader(data(0).dataset, batch_size=6, collate_fn=collate)
    with pytest.raises(InputError, match=r"a batch of type 'dict' that cannot be split into samples; expected .* HINT"):
        fit(Graph(), loader, KroneckerEWC(1.0))


def test_a_fisher_that_is_zero_everywhere_is_an_error():
    module, method = Net(), KroneckerEWC(1.0)
    with torch.no_grad():
        module.net[2].weight.zero_()
        module.net[2].bias.copy_(torch.tensor([1e4, 0.0, 0.0]))
    with pytest.raises(InputError, match=r"Fisher information of KroneckerEWC.kfac_ewc that is 0 everywhere; .* HINT"):
        method.consolidate(None, module, data(0))
    assert (method.n_tasks, method.blocks) == (0, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_": -1}, "lambda_=-1; expected a finite number >= 0"),
        ({"lambda_": "auto"}, "lambda_='auto' with KroneckerEWC; expected a number >= 0. HINT: begin with one"),
        ({"accumulate": "mean"}, "accumulate='mean'; expected 'tasks' or 'sum'. HINT: leave it out for 'tasks'"),
        ({"rest": "all"}, "rest='all'; expected 'diagonal' or 'none'. HINT: leave it out for 'diagonal'"),
        ({"max_size": 0}, "max_size=0; expected an integer >= 1 or None. HINT: None takes layers of every size"),
        ({"labels": "batch_mean"}, "labels='batch_mean'; expected one of exact, mc, empirical"),
        ({"n_draws": 0}, "n_draws=0, n_samples=None; expected integers >= 1"),
        ({"n_samples": 0}, "n_draws=1, n_samples=0; expected integers >= 1"),
        (
            {"apply": "proximal"},
            "apply='proximal' with KroneckerEWC; expected 'gradient'. HINT: .* a solve .*; EWC has it",
        ),
        ({"normalize": "max"}, "normalize='max' with KroneckerEWC; expected None. HINT: leave it out; EWC has it"),
        ({"importance_dtype": "bfloat16"}, "importance_dtype='bfloat16' with KroneckerEWC; expected 'float32'"),
        ({"importance_path": "x.pt"}, "importance_path='x.pt' with KroneckerEWC; expected None"),
        ({"include": "("}, r"include='\(' .*; expected a regular expression"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        KroneckerEWC(**{"lambda_": 1.0, **options})


def test_sharded_strategies_are_refused_in_setup():
    trainer = SimpleNamespace(strategy=type("FSDPStrategy", (), {})())
    with pytest.raises(InputError, match=r"strategy 'FSDPStrategy' with KroneckerEWC; expected"):
        KroneckerEWC(1.0).setup(trainer, Net(), "fit")
