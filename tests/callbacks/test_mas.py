"""MAS inside real Trainers, against a plain loop with one autograd call per sample."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_cl import MAS, FineTuningModule
from lightning_cl.errors import InputError
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.importance_examples import Adapted
from tests.callbacks.path_examples import Double, Loop, lightning
from tests.callbacks.replay_examples import fit
from tests.callbacks.test_importance_batches import Graphs, collate_graphs


def sensitivity(parameters: list[Tensor], loader: Any, outputs: Any) -> list[Tensor]:
    """Mean over samples of the absolute gradient of the squared norm of the outputs."""
    total, n = [torch.zeros_like(p) for p in parameters], 0
    for x, _ in loader:
        for sample in x:
            norm = (outputs(sample[None]) ** 2).sum()
            for value, gradient in zip(total, torch.autograd.grad(norm, parameters), strict=True):
                value += gradient.abs()
            n += 1
    return [value / n for value in total]


class Oracle(Loop):
    """MAS as its paper says it, in its own convention: lambda without 1/2."""

    def __init__(self, strength: float, optimizer: str) -> None:
        super().__init__(optimizer)
        self.strength, self.omega, self.anchor = strength, self.zeros(), self.values()

    def penalty(self) -> Tensor:
        terms = zip(self.parameters, self.omega, self.anchor, strict=True)
        return self.strength * sum((o * (p - a) ** 2).sum() for p, o, a in terms)

    def end(self, loader: Any) -> None:
        new = sensitivity(self.parameters, loader, self.module.net)
        self.omega = [old + value for old, value in zip(self.omega, new, strict=True)]
        self.anchor = self.values()


@pytest.mark.parametrize("optimizer", ["momentum", "Adam"])
def test_three_tasks_end_with_the_weights_of_a_plain_loop(optimizer: str):
    oracle = Oracle(0.05, optimizer)
    oracle.learn(tasks=3, epochs=2)
    mas = MAS(0.1)
    module = lightning(mas, optimizer)
    for got, expected in zip(module.parameters(), oracle.parameters, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    for got, expected in zip(mas.importance.values(), oracle.omega, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    naive = Loop(optimizer)
    naive.learn(tasks=3, epochs=2)
    assert float((naive.module.weights - module.weights).abs().max()) > 1e-3, "the penalty does something"


def assert_importance(mas: MAS, module: Any, outputs: Any) -> None:
    for got, expected in zip(
        mas.importance.values(), sensitivity(list(module.parameters()), data(0), outputs), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-7)
    assert max(float(value.max()) for value in mas.importance.values()) > 1e-3


class Smoothed(Adapted):
    """The loss is not the cross-entropy of ``module(x)``, so for EWC there are no logits."""

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y, label_smoothing=0.3)


class Regressor(Adapted):
    """One number per sample, without a dimension for it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)[:, 0]

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(self(x), y.float())


class Named(Adapted):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(batch["image"], batch["label"])


class Unlabelled(Adapted):
    """An autoencoder's kind of batch: one tensor."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch).square().mean()


def named(loader: DataLoader) -> DataLoader:
    def collate(samples: list[Any]) -> Any:
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"image": x, "label": y}

    return DataLoader(loader.dataset, batch_size=6, collate_fn=collate)


def bare(loader: DataLoader) -> DataLoader:
    return DataLoader(loader.dataset.tensors[0], batch_size=6)


@pytest.mark.parametrize(
    ("module", "change"),
    [(Smoothed, lambda x: x), (Regressor, lambda x: x), (Named, named), (Unlabelled, bare),
     (lambda: Net(manual=True), lambda x: x)],
    ids=["another loss", "regression", "mapping", "bare tensor", "manual optimization"],
)  # fmt: skip
def test_modules_that_know_nothing_of_us(module: Any, change: Any):
    made, mas = module(), MAS(1.0)
    fit(made, change(data(0)), mas)
    assert_importance(mas, made, made)


class Unusual(Adapted):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.net(first + second)


def test_outputs_can_be_given():
    module, mas = Unusual(), MAS(1.0, outputs_fn=lambda module, batch: module.net(batch[0]))
    fit(module, data(0), mas)
    assert_importance(mas, module, module.net)


def test_batches_that_cannot_be_split_are_collated_sample_by_sample():
    module = Graphs()

    def outputs_fn(module: Any, graph: Any) -> Tensor:
        return module.net(graph.nodes.mean(0, keepdim=True))

    mas = MAS(1.0, outputs_fn=outputs_fn)
    fit(module, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate_graphs), mas)
    assert_importance(mas, module, module.net)


@pytest.mark.parametrize(
    ("module", "loader", "message"),
    [
        (Unusual, data(0), r"module\(x\), which raises TypeError: .*; expected outputs. HINT: give outputs_fn="),
        (Graphs, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate_graphs),
         r"a batch of type 'Graph' with no obvious inputs; expected a tensor of inputs. HINT: give outputs_fn="),
        (lambda: type("Total", (Adapted,), {"forward": lambda self, x: self.net(x).sum(0)})(), data(0),
         r"module\(x\), which gives \(3,\) of torch.float32; expected numbers of shape \(N, ...\). HINT: give"),
    ],
    ids=["forward", "batch", "shape"],
)  # fmt: skip
def test_outputs_that_are_not_found_are_refused_before_training(module: Any, loader: Any, message: str):
    made = module()
    before = made.weights.clone()
    with pytest.raises(InputError, match=message):
        fit(made, loader, MAS(1.0))
    assert torch.equal(made.weights, before)


def test_classes_that_are_not_active_have_no_outputs():
    torch.manual_seed(0)
    classes, tasks = [f"c{i}" for i in range(4)], [[0, 1], [2, 3]]
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh())
    backbone.feature_dim = 6
    module = FineTuningModule(backbone, input_shape=(4,), class_names=classes, tasks=tasks, head="multi")
    mas, x = MAS(1.0), torch.randn(8, 4)
    mas.consolidate(None, module, [(x, torch.tensor([2, 3] * 4), torch.ones(8, dtype=torch.long))])

    def outputs(x: Tensor) -> Tensor:
        return module.head(module.backbone(x))[:, 2:]

    expected = sensitivity(list(module.parameters()), [(x, None)], outputs)
    for got, value in zip(mas.importance.values(), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=1e-4, atol=1e-7)
    assert not mas.importance["head.weight"][:2].any()


def test_a_subset_is_seeded():
    module, got = Net(), []
    for seed in (0, 0, 1):
        mas = MAS(1.0, n_samples=5, seed=seed)
        mas.consolidate(None, module, data(0))
        got.append(mas.importance["net.0.weight"])
    assert torch.equal(got[0], got[1])
    assert not torch.equal(got[0], got[2])


def test_in_float64_and_with_bf16_mixed_precision():
    mas, module = MAS(0.1), Double()
    fit(module, data(0, dtype=torch.float64), mas)
    assert {value.dtype for value in mas.importance.values()} == {torch.float64}
    mas, net = MAS(0.1), Net()
    for task in range(2):
        fit(net, data(task), mas, precision="bf16-mixed")
    assert {value.dtype for value in mas.importance.values()} == {torch.float32}
    assert net.weights.isfinite().all()


def test_values_out_of_range_are_refused():
    with pytest.raises(InputError, match=r"n_samples=0; expected an integer >= 1. HINT: leave it out"):
        MAS(1.0, n_samples=0)
