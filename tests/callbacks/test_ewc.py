"""The penalty's gradient inside a real Trainer, against autograd."""

from typing import Any

import pytest
import torch

from lightning_cl import EWC
from lightning_cl.functional import diagonal_fisher
from tests.callbacks.ewc_examples import Gradients, Net, data, quadratics
from tests.callbacks.replay_examples import fit


def separate_terms(module: Net, n_tasks: int) -> list[Any]:
    """Importance and anchor of a task each, kept apart, from fits in turn; the module is left after the last."""
    terms = []
    for task in range(n_tasks):
        fit(module, data(task, dtype=module.dtype))
        fisher = diagonal_fisher(module, data(task, dtype=module.dtype))
        terms.append((list(fisher.values()), [p.detach().clone() for p in module.parameters()]))
    return terms


def start(ewc: EWC, module: Net, terms: list[Any]) -> None:
    """Give a callback the same tasks, one after the other, as if it had learned them."""
    for task, (_, anchor) in enumerate(terms):
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), anchor, strict=True):
                parameter.copy_(value)
        ewc.consolidate(None, module, data(task, dtype=module.dtype))


PARITY = {
    "plain": {},
    "accumulate": {"accumulate_grad_batches": 4},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "manual": {},
}


@pytest.mark.parametrize("case", PARITY)
def test_gradient_is_that_of_separate_quadratics_of_three_tasks(case: str):
    module = Net(manual=case == "manual")
    module.double() if case != "bf16-mixed" else module.float()
    terms = separate_terms(module, 3)
    # a manually optimized step returns no loss to compare with, so it has to be told where the logits are
    told = {"logits_fn": lambda module, batch: (module(batch[0]), batch[1])} if case == "manual" else {}
    ewc = EWC(3.0, consolidate="manual", **told)
    start(ewc, module, terms)
    before, after = Gradients(), Gradients()
    fit(module, data(3, dtype=module.dtype), before, ewc, after, max_epochs=1, **PARITY[case])
    assert len(after.seen) == (1 if case == "accumulate" else 4)
    wanted = 1e-5 if case == "bf16-mixed" else 1e-10
    for step, parameters in enumerate(after.at):
        oracle = quadratics(parameters, terms, 3.0)
        for own, total, expected in zip(before.seen[step], after.seen[step], oracle, strict=True):
            assert float(((total - own) - expected).norm()) <= wanted * max(1.0, float(expected.norm()))
    assert max(float(g.norm()) for g in quadratics(after.at[-1], terms, 3.0)) > 1e-2, "the penalty does something"


def test_penalty_is_clipped_with_the_rest():
    module = Net().double()
    terms = separate_terms(module, 1)
    ewc, after = EWC(1e4, consolidate="manual"), Gradients()
    start(ewc, module, terms)
    with torch.no_grad():
        module.net[0].weight += 1.0
    steps: list[float] = []

    class Clipped(Gradients):
        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if all(p.grad is not None for p in pl_module.parameters()):
                steps.append(float(torch.cat([p.grad.flatten() for p in pl_module.parameters()]).norm()))

    fit(module, data(3, dtype=torch.float64), ewc, after, Clipped(), max_epochs=1, gradient_clip_val=0.25)
    assert float(torch.cat([g.flatten() for g in after.seen[0]]).norm()) > 10
    assert steps
    assert max(steps) <= 0.25 * (1 + 1e-6)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_online_decays_the_old_importance_around_the_latest_weights(gamma: float):
    module = Net().double()
    terms = separate_terms(module, 3)
    ewc = EWC(1.0, variant="online", gamma=gamma)
    start(ewc, module, terms)
    expected = [gamma**2 * a + gamma * b + c for a, b, c in zip(*(fisher for fisher, _ in terms), strict=True)]
    for got, wanted in zip(ewc.importance.values(), expected, strict=True):
        torch.testing.assert_close(got, wanted)
    for got, wanted in zip(ewc.anchor.values(), terms[-1][1], strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_two_tensors_per_trainable_parameter_for_any_number_of_tasks():
    module, ewc, sizes = Net(), EWC(1.0), []
    for task in range(4):
        fit(module, data(task), ewc, max_epochs=1)
        sizes.append((len(ewc.importance), len(ewc.anchor), ewc.nbytes))
    n = sum(p.numel() for p in module.parameters())
    assert sizes == [(4, 4, 2 * 4 * n)] * 4
    assert ewc.n_tasks == 4


def learned(*callbacks: Any, optimizer: str = "SGD", shuffle: bool = True) -> torch.Tensor:
    module = Net(optimizer=optimizer)
    torch.manual_seed(5)
    for task in range(2):
        fit(module, data(task, shuffle=shuffle), *callbacks)
    return module.weights


def test_lambda_zero_is_bit_identical_to_no_callback_and_lambda_is_not():
    assert torch.equal(learned(), learned(EWC(0.0)))
    assert not torch.equal(learned(), learned(EWC(10.0)))


def test_frozen_parameters_are_skipped_and_come_in_when_they_thaw():
    module, ewc = Net(), EWC(1.0)
    module.net[0].requires_grad_(False)
    fit(module, data(0), ewc)
    assert set(ewc.importance) == set(ewc.anchor) == {"net.2.weight", "net.2.bias"}
    module.net[0].requires_grad_(True)
    module.net[2].requires_grad_(False)
    head = ewc.importance["net.2.weight"].clone()
    fit(module, data(1), ewc)
    assert set(ewc.importance) == {name for name, _ in module.named_parameters()}
    assert torch.equal(ewc.importance["net.2.weight"], head), "what is frozen keeps its importance"


def test_rows_that_a_head_gains_are_padded_with_zeros():
    module, ewc = Net(), EWC(5.0)
    fit(module, data(0), ewc)
    old = {name: (ewc.importance[name].clone(), ewc.anchor[name].clone()) for name in ewc.importance}
    head = torch.nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = module.net[2].weight, module.net[2].bias
    module.net[2] = head
    before, after = Gradients(), Gradients()
    fit(module, data(1), before, ewc, after, max_epochs=1)
    for step, at in enumerate(after.at):
        penalty = after.seen[step][2] - before.seen[step][2]
        assert torch.equal(penalty[3:], torch.zeros(2, 8)), "new rows are free"
        f, anchor = old["net.2.weight"]
        torch.testing.assert_close(penalty[:3], 5.0 * f * (at[2][:3] - anchor), rtol=1e-3, atol=1e-6)
    assert ewc.importance["net.2.weight"].shape == ewc.anchor["net.2.weight"].shape == (5, 8)


def test_starts_from_a_pretrained_model_and_a_loader_without_a_trainer():
    module, ewc = Net(), EWC(100.0)
    for parameter in module.parameters():
        parameter.data.add_(0.1)
    ewc.consolidate(None, module, data(0))
    assert ewc.n_tasks == 1
    pretrained = module.weights.clone()
    oracle = diagonal_fisher(module, data(0))
    assert all(torch.allclose(ewc.importance[name], oracle[name]) for name in oracle)
    naive = Net()
    naive.load_state_dict(module.state_dict())
    fit(module, data(1), ewc)
    fit(naive, data(1))
    fisher = torch.cat([f.flatten() for f in oracle.values()])
    moved = [float((fisher * (m.weights - pretrained) ** 2).sum()) for m in (module, naive)]
    assert moved[0] < 0.5 * moved[1], "what matters to the pretrained model moves less"
