"""Generative replay towards the previous model's predictions instead of its labels."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_cl import run_sequence, streams
from tests.callbacks.dgr_examples import Net, as_dict, as_triple, as_tuple, data, dgr
from tests.callbacks.replay_examples import fit
from tests.callbacks.test_dgr import learn
from tests.finetuning.examples import FEW_EPOCHS, module, stream


class Generated(Net):
    """SGD; remembers the generated batches on which its logits were asked for, and the weights before each step."""

    def __init__(self, **options: Any) -> None:
        super().__init__(optimizer="SGD", lr=0.5, **options)
        self.before: list[Tensor] = []
        self.generated: list[Tensor] = []

    def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
        if torch.is_grad_enabled() and len(self.before) == len(self.batches) == len(self.generated) + 1:
            own = self.batches[-1]
            if x is not (own["image"] if isinstance(own, dict) else own[0]):
                self.generated.append(x.clone())
        return super().forward(x, task)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.before.append(self.weights.clone())


def softened(logits: Tensor, temperature: float) -> Tensor:
    """The softmax, written out."""
    powers = [[2.718281828459045 ** (float(z) / temperature) for z in row] for row in logits.detach()]
    return torch.tensor([[p / sum(row) for p in row] for row in powers])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_one_step_is_that_of_the_formula(temperature: float):
    callback, net = dgr(labels="soft", temperature=temperature), Generated()
    torch.manual_seed(3)
    fit(net, data(0), callback, max_epochs=1)
    teacher, student = copy.deepcopy(net.net).eval(), copy.deepcopy(net.net)
    for remembered in (net.before, net.batches, net.generated):
        remembered.clear()
    fit(net, data(1), callback, max_epochs=1)
    assert len(net.batches) == len(net.generated) == 4, "training_step runs on the user's own batches only"
    (x, y), made = net.batches[0], net.generated[0]
    p = softened(teacher(made), temperature)
    distillation = -(p * (student(made) / temperature).log_softmax(1)).sum(1).mean()
    (0.5 * nn.functional.cross_entropy(student(x), y) + 0.5 * distillation).backward()
    expected = [q.detach() - 0.5 * q.grad for q in student.parameters()]  # type: ignore[operator]
    torch.testing.assert_close(net.before[1], torch.cat([q.flatten() for q in expected]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("structure", [as_tuple, as_dict, as_triple])
def test_differs_from_hard_labels_and_from_none(structure: Callable[..., Any]):
    soft, hard, naive = (
        learn(Net(), *callbacks, structure=structure).weights
        for callbacks in ([dgr(labels="soft")], [dgr(labels="hard")], [])
    )
    assert soft.isfinite().all()
    for other in (hard, naive):
        assert float((soft - other).abs().max()) > 1e-3


def test_a_weight_of_zero_is_naive():
    naive = learn(Net(dropout=0.3)).weights
    assert torch.equal(learn(Net(dropout=0.3), dgr(labels="soft", weights=(1.0, 0.0))).weights, naive)


@pytest.mark.parametrize("head", ["growing", "multi", "separate", "fixed"])
def test_new_classes_have_the_target_zero(head: Any, monkeypatch: pytest.MonkeyPatch):
    from lightning_cl.callbacks import dgr as room

    seen: list[tuple[Tensor, Tensor]] = []
    original = room.distillation_loss

    def watched(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
        seen.append((logits.detach().clone(), targets.clone()))
        return original(logits, targets, temperature)

    monkeypatch.setattr(room, "distillation_loss", watched)
    options = {"class_names": [f"c{i}" for i in range(6)]} if head == "fixed" else {}
    scenario = streams.class_incremental if head in ("growing", "fixed") else streams.task_incremental
    callback = dgr(decoder="gaussian", labels="soft")
    net = module(head=head, **options)
    run_sequence(net, stream(scenario), [callback], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10)
    assert len(seen) == callback.replayed // 10
    logits, targets = seen[-1]
    now, then = logits.softmax(1), nn.functional.pad(targets.softmax(1), (0, logits.shape[1] - targets.shape[1]))
    if scenario is streams.class_incremental:
        assert (now > 0).all(1).all(), "the softmax is over all six classes"
        assert torch.equal(then > 0, torch.arange(6).expand(len(then), 6) < 4)
        return
    # once for each of two earlier tasks, over its own classes
    tasks = torch.arange(2).repeat_interleave(10)
    own = torch.arange(6) // 2 == tasks[:, None]
    assert torch.equal(now > 0, own)
    assert torch.equal(then > 0, own)


def test_a_module_that_masks_with_infinity():
    class Infinite(Net):
        def forward(self, x: Tensor, task: Tensor | None = None) -> Tensor:
            assert task is not None
            return self.net(x).masked_fill(torch.arange(6) // 2 != task[:, None], -float("inf"))

    weights = learn(Infinite(), dgr(labels="soft"), structure=as_triple, tasks=3).weights
    assert weights.isfinite().all()
    assert float((weights - learn(Infinite(), structure=as_triple, tasks=3).weights).abs().max()) > 1e-3


@pytest.mark.parametrize(
    "options", [{"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.1}, {"precision": "bf16-mixed"}]
)
def test_trainers(options: dict[str, Any]):
    weights = learn(Net(), dgr(labels="soft"), **options).weights
    assert weights.isfinite().all()
    assert float((weights - learn(Net(), **options).weights).abs().max()) > 1e-3


def test_logits_of_its_own():
    class Features(Net):
        def forward(self, x: Tensor, task: Tensor | None = None) -> Any:
            return {"logits": self.net(x)}

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0])["logits"], batch[1])

    plain = learn(Net(), dgr(labels="soft")).weights
    given = learn(Features(), dgr(labels="soft", logits_fn=lambda net, batch: net(batch[0])["logits"])).weights
    assert torch.equal(plain, given)
