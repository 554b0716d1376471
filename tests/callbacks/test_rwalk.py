"""RWalk inside real Trainers, against a plain loop with per-sample gradients by autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl import RWalk
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.path_examples import Double, Loop, lightning
from tests.callbacks.replay_examples import fit

EPSILON = 1e-3


class Oracle(Loop):
    """RWalk as its paper says it, in its own convention: lambda without 1/2."""

    def __init__(self, strength: float, interval: int, gamma: float, scale: bool, optimizer: str) -> None:
        super().__init__(optimizer)
        self.strength, self.interval, self.gamma, self.scale = strength, interval, gamma, scale
        self.importance, self.fisher, self.score = self.zeros(), self.zeros(), self.zeros()
        self.anchor, self.running, self.task = self.values(), None, 0
        self._begin_task()

    def _begin_task(self) -> None:
        self.task_score, self.interval_start = self.zeros(), self.values()
        self.drop, self.squares = self.zeros(), []

    def penalty(self) -> Tensor:
        terms = zip(self.parameters, self.importance, self.anchor, strict=True)
        return self.strength * sum((f * (p - a) ** 2).sum() for p, f, a in terms)

    def step(self, before: list[Tensor], own: list[Tensor], total: list[Tensor]) -> None:
        for i, p in enumerate(self.parameters):
            self.drop[i] -= own[i] * (p.detach() - before[i])
        self.squares.append([g**2 for g in own])
        if len(self.squares) == self.interval:
            self._close()

    def _close(self) -> None:
        means = [torch.stack(values).mean(0) for values in zip(*self.squares, strict=True)]
        fisher = self.running or means
        for i, p in enumerate(self.parameters):
            distance = fisher[i] * (p.detach() - self.interval_start[i]) ** 2 / 2
            self.task_score[i] += (self.drop[i] / (distance + EPSILON)).relu()
        self.running = [0.9 * new + 0.1 * old for new, old in zip(means, fisher, strict=True)]
        self.drop, self.squares, self.interval_start = self.zeros(), [], self.values()

    def end(self, loader: Any) -> None:
        if self.squares:
            self._close()
        new, n = self.zeros(), 0
        for x, _ in loader:
            for sample in x:
                logits = self.module.net(sample[None])[0]
                for label, p in enumerate(logits.softmax(0)):
                    loss = nn.functional.cross_entropy(logits, torch.tensor(label))
                    for total, g in zip(
                        new, torch.autograd.grad(loss, self.parameters, retain_graph=True), strict=True
                    ):
                        total += p.detach() * g**2
                n += 1
        self.fisher = [self.gamma * old + total / n for old, total in zip(self.fisher, new, strict=True)]
        halves = zip(self.score, self.task_score, strict=True)
        self.score = self.task_score if self.task == 0 else [(a + b) / 2 for a, b in halves]
        terms = [self._unit(self.fisher), self._unit(self.score)] if self.scale else [self.fisher, self.score]
        self.importance = [a + b for a, b in zip(*terms, strict=True)]
        self.anchor, self.task = self.values(), self.task + 1
        self._begin_task()

    def _unit(self, values: list[Tensor]) -> list[Tensor]:
        flat = torch.cat([value.flatten() for value in values])
        return [(value - flat.min()) / (flat.max() - flat.min()) for value in values]


@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
@pytest.mark.parametrize(("interval", "gamma", "scale"), [(1, 1.0, True), (3, 0.5, True), (10, 1.0, False)])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(interval: int, gamma: float, scale: bool, optimizer: str):
    oracle = Oracle(0.5, interval, gamma, scale, optimizer)
    oracle.learn(tasks=3, epochs=2)
    rwalk = RWalk(1.0, interval=interval, gamma=gamma, scale_terms=scale, epsilon=EPSILON)
    module = lightning(rwalk, optimizer)
    for got, expected in zip(rwalk.importance.values(), oracle.importance, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-9)
    for got, expected in zip(module.parameters(), oracle.parameters, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    naive = Loop(optimizer)
    naive.learn(tasks=3, epochs=2)
    assert float((naive.module.weights - module.weights).abs().max()) > 1e-3, "the penalty does something"
    assert max(float(score.max()) for score in rwalk._score.values()) > 0, "so does the path"


def test_manual_optimization_is_the_same():
    told = {"logits_fn": lambda module, batch: (module(batch[0]), batch[1])}
    expected = lightning(RWalk(1.0, **told), "Adam")
    got = lightning(RWalk(1.0, **told), module=Double("Adam", manual=True))
    assert torch.equal(got.weights, expected.weights)


def test_fisher_and_score_are_each_scaled_to_the_unit_interval():
    rwalk = RWalk(1.0)
    fit(Net(), data(0), rwalk)
    flat = torch.cat([value.flatten() for value in rwalk.importance.values()])
    assert 1 <= float(flat.max()) <= 2
    assert float(flat.min()) >= 0


def test_a_model_that_was_trained_elsewhere_has_its_fisher_only():
    module, rwalk = Net(), RWalk(1.0, scale_terms=False)
    rwalk.consolidate(None, module, data(0))
    for name, value in diagonal_fisher(module, data(0)).items():
        torch.testing.assert_close(rwalk.importance[name], value)
    fit(module, data(1), rwalk)
    assert rwalk.n_tasks == 2


def test_the_importance_of_a_file_counts_as_an_earlier_tasks_fisher():
    rwalk, module = RWalk(1.0, scale_terms=False, gamma=0.5), Net()
    rwalk.importance = {name: torch.full_like(p, 8.0) for name, p in module.named_parameters()}
    rwalk.anchor = {name: p.detach().clone() for name, p in module.named_parameters()}
    rwalk.consolidate(None, module, data(0))
    for name, value in diagonal_fisher(module, data(0)).items():
        torch.testing.assert_close(rwalk.importance[name], 4.0 + value)


def test_thawed_parameters_and_new_rows_have_intervals_of_their_own():
    class Thaws(Net):
        def on_train_epoch_start(self) -> None:
            self.net[0].requires_grad_(self.current_epoch > 0)

    module, rwalk = Thaws(optimizer="Adam"), RWalk(1.0, interval=3, consolidate="manual")
    fit(module, data(0), rwalk)
    assert rwalk._path.steps == {"net.2.weight": 2, "net.2.bias": 2, "net.0.weight": 1, "net.0.bias": 1}
    rwalk.consolidate(None, module, data(0))
    old = {kind: store["net.2.weight"].clone() for kind, store in
           (("fisher", rwalk._fisher), ("score", rwalk._score), ("running", rwalk._path.running))}  # fmt: skip
    head = nn.Linear(8, 5)
    with torch.no_grad():
        head.weight[:3], head.bias[:3] = module.net[2].weight, module.net[2].bias
    module.net[2] = head
    fit(module, data(1), rwalk, max_epochs=1)
    assert rwalk._path.running["net.2.weight"].shape == (5, 8)
    task_score = rwalk._path.finish(dict(module.named_parameters()))["net.2.weight"].clone()
    rwalk.consolidate(None, module, data(1))
    score = rwalk._score["net.2.weight"]
    torch.testing.assert_close(score[:3], (old["score"] + task_score[:3]) / 2)
    torch.testing.assert_close(score[3:], task_score[3:])
    assert bool((rwalk._fisher["net.2.weight"][:3] >= old["fisher"]).all())
    assert {t.shape for t in (score, rwalk.importance["net.2.weight"], rwalk.anchor["net.2.weight"])} == {(5, 8)}


def test_what_is_kept_between_tasks_does_not_grow():
    rwalk, module, sizes = RWalk(1.0), Net(), []
    for task in range(3):
        fit(module, data(task), rwalk, max_epochs=1)
        sizes.append(rwalk.nbytes)
        assert rwalk._path.squares == rwalk._path.path.integral == {}
    assert sizes == [5 * 4 * sum(p.numel() for p in module.parameters())] * 3


def test_consolidation_is_tried_when_training_starts():
    class Fails(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise AssertionError("training has begun")

    def no_logits(module: Any, batch: Any) -> Any:
        raise ValueError("no such thing; expected logits. HINT: look")

    with pytest.raises(InputError, match="no such thing"):
        fit(Fails(), data(0), RWalk(1.0, logits_fn=no_logits))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 0.0}, r"gamma=0.0; expected a number in \(0, 1\]. HINT: leave it out"),
        ({"alpha": 1.5}, r"alpha=1.5; expected a number in \(0, 1\]. HINT: leave it out"),
        ({"epsilon": 0.0}, r"epsilon=0.0; expected a finite number > 0. HINT: epsilon=1e-3 is the default"),
        ({"interval": 0}, r"interval=0; expected an integer >= 1. HINT: interval=10 is the default"),
        ({"interval": 1.5}, r"interval=1.5; expected an integer >= 1"),
        ({"labels": "true"}, r"labels='true'; expected one of exact, mc, empirical, predicted"),
        ({"n_draws": 0}, r"n_draws=0, n_samples=None; expected integers >= 1"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        RWalk(1.0, **options)
