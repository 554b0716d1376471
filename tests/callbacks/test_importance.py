"""Importance in modules that know nothing of us: the same numbers as an autograd loop, and no trace left."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics.classification import MulticlassAccuracy

from lightning_cl import EWC
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.replay_examples import fit


class Adapted(Net):
    """A Net whose step, batch or output differs; ``loss_of`` is what its gradients are."""

    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss_of(*batch)


class LogProbabilities(Adapted):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).log_softmax(1)

    def training_step(self, batch: Any) -> Any:
        return {"loss": nn.functional.nll_loss(self(batch[0]), batch[1])}


class Smoothed(Adapted):
    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x), y, label_smoothing=0.3)


class Squeezing(Adapted):
    def loss_of(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.net(x).squeeze(), y)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("unused")


class AnyArguments(Smoothed):
    def training_step(self, *args: Any) -> Any:
        batch, batch_idx = args
        assert isinstance(batch_idx, int)
        return self.loss_of(*batch)


class InTraining(Smoothed):
    """Its step works in training mode only, and its dropout must not."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if not self.training:
            raise RuntimeError("scores only")
        return nn.functional.cross_entropy(self.net(self.dropout(batch[0])), batch[1], label_smoothing=0.3)


def oracle(module: Any, loader: Any, loss: Any) -> dict[str, Tensor]:
    """Mean over samples of the squared gradient, one autograd call each."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    count = 0
    for batch in loader:
        for i in range(len(batch[1])):
            value = loss(*(part[i : i + 1] for part in batch))
            gradients = torch.autograd.grad(value, list(module.parameters()), allow_unused=True)
            for name, gradient in zip(total, gradients, strict=True):
                total[name] += 0 if gradient is None else gradient**2
            count += 1
    return {name: value / count for name, value in total.items()}


def agree(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-4, atol=1e-9)
    assert max(float(value.abs().max()) for value in got.values()) > 1e-5


@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
@pytest.mark.parametrize("make", [Net, LogProbabilities])
def test_logits_are_found_if_their_cross_entropy_is_the_loss(make: Any, labels: Any, caplog: Any):
    module, ewc = make(), EWC(1.0, labels=labels)
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        ewc.consolidate(None, module, data(0))
    assert not caplog.records
    agree(ewc.importance, diagonal_fisher(module, data(0), labels=labels, logits_fn=lambda m, b: (m.net(b[0]), b[1])))


def test_logits_are_found_in_a_dict_with_strings():
    class Dicts(Adapted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss_of(batch["image"], batch["label"])

    def collate(samples: list[Any]) -> Any:
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"image": x, "name": [str(i) for i in range(len(x))], "label": y}

    module, ewc = Dicts(), EWC(1.0)
    ewc.consolidate(None, module, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate))
    agree(ewc.importance, diagonal_fisher(module, data(0)))


@pytest.mark.parametrize("make", [Smoothed, AnyArguments, Squeezing, InTraining])
def test_another_loss_is_taken_sample_by_sample_and_said(make: Any, caplog: pytest.LogCaptureFixture):
    module, ewc = make(), EWC(1.0)
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        ewc.consolidate(None, module, data(0))
    (record,) = caplog.records
    assert "labels='exact' needs logits" in record.getMessage()
    assert "using labels='empirical'" in record.getMessage()
    loss = module.loss_of if make is not Squeezing else lambda x, y: nn.functional.cross_entropy(module.net(x), y)
    agree(ewc.importance, oracle(module, data(0), loss))


def test_the_warning_comes_before_training_and_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(Smoothed(), data(0), EWC(1.0))
    assert len([r for r in caplog.records if "needs logits" in r.getMessage()]) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(Smoothed(), data(0), EWC(1.0, labels="empirical"))
    assert not [r for r in caplog.records if "needs logits" in r.getMessage()]


class Adversaries(LightningModule):
    """Two networks, two optimizers and a scheduler; the second loss leaves gradients on the first network too."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 3), nn.Linear(3, 1)

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        made = self.a(x)
        return nn.functional.cross_entropy(made, y), self.b(made).square().mean()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        (first, second), schedule = self.optimizers(), self.lr_schedulers()
        self.toggle_optimizer(first)
        loss, _ = self.losses(*batch)
        first.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(first, gradient_clip_val=1e-3)
        first.step()
        self.untoggle_optimizer(first)
        schedule.step()
        _, loss = self.losses(*batch)
        second.zero_grad()
        self.manual_backward(loss)
        second.step()

    def configure_optimizers(self) -> Any:
        first = torch.optim.Adam(self.a.parameters(), lr=0.01)
        return [first, torch.optim.SGD(self.b.parameters(), lr=0.01)], [torch.optim.lr_scheduler.StepLR(first, 2)]


@pytest.mark.parametrize("with_trainer", [True, False])
def test_each_parameter_gets_the_gradient_that_its_own_optimizer_steps_with(with_trainer: bool):
    module, ewc = Adversaries(), EWC(1.0)
    if with_trainer:
        fit(module, data(0), ewc)
    else:
        ewc.consolidate(None, module, data(0))
    first = oracle(module, data(0), lambda x, y: module.losses(x, y)[0])
    second = oracle(module, data(0), lambda x, y: module.losses(x, y)[1])
    agree(ewc.importance, {name: (first if name.startswith("a") else second)[name] for name in first})
    assert all(p.requires_grad for p in module.parameters())


def test_manual_optimization_is_left_as_it_was():
    results = []
    for callbacks in ([], [EWC(0.0)]):
        module = Adversaries()
        trainer = fit(module, data(0), *callbacks)
        state = trainer.optimizers[0].state_dict()
        results.append((torch.cat([p.flatten() for p in module.parameters()]), state["param_groups"][0]["lr"]))
        results[-1] += (float(state["state"][0]["step"]), "optimizers" in vars(module))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_optimizers_behind_the_stand_ins_are_refused_before_training():
    class Direct(Adversaries):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss, _ = self.losses(*batch)
            self.trainer.optimizers[0].zero_grad()
            loss.backward()
            self.trainer.optimizers[0].step()

    module = Direct()
    before = module.a.weight.detach().clone()
    with pytest.raises(InputError, match=r"Direct.training_step, which changes the weights by itself; expected"):
        fit(module, data(0), EWC(1.0))
    assert torch.equal(module.a.weight, before)


def test_nothing_of_the_module_is_changed(tmp_path: Any):
    class Untidy(Smoothed):
        def __init__(self) -> None:
            super().__init__()
            self.accuracy, self.hidden = MulticlassAccuracy(3), [MulticlassAccuracy(3)]
            self.norm = nn.BatchNorm1d(4)
            self.register_buffer("seen", torch.zeros(()))
            self.outputs, self.counts, self.calls = [], {}, 0
            self.frozen = nn.Dropout().eval()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            logits = self.net(self.norm(x))
            self.accuracy(logits, y)
            self.hidden[0](logits, y)
            self.log("accuracy", self.accuracy)
            self.log_dict({"more": logits.mean()})
            self.logger.log_metrics({"direct": 1.0}, step=self.calls)
            self.seen += len(x)
            self.outputs.append(len(x))
            self.counts[len(self.counts)] = 1
            self.calls += 1
            self.extra = logits.detach() + torch.rand(())
            return nn.functional.cross_entropy(logits, y, label_smoothing=0.3)

    found = []
    for callbacks in ([], [EWC(0.0)]):
        module = Untidy()
        torch.manual_seed(1)
        logger = CSVLogger(tmp_path, version=len(found), flush_logs_every_n_steps=1)
        trainer = fit(module, data(0), *callbacks, logger=logger, max_epochs=1)
        state = {name: value.clone() for name, value in module.state_dict().items()}
        metrics = [m.tp.clone() for m in (module.accuracy, module.hidden[0])]
        plain = (module.outputs, module.counts, module.calls, module.frozen.training, len(logger.experiment.metrics))
        found.append((state, metrics, plain, dict(trainer.callback_metrics), torch.get_rng_state(), module.extra))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert found[0][2][0] == [6] * 4


@dataclass
class Graph:
    nodes: Tensor
    sizes: Tensor
    y: Tensor

    def to(self, device: Any) -> None:
        """In place, as some packages do."""
        self.nodes = self.nodes.to(device)


def collate_graphs(samples: list[Any]) -> Graph:
    x, y = (torch.stack(part) for part in zip(*samples, strict=True))
    sizes = torch.arange(len(x)) % 2 + 1
    return Graph(x.repeat_interleave(sizes, 0), sizes, y)


class Graphs(Adapted):
    def training_step(self, batch: Graph, batch_idx: int) -> Any:
        rows = torch.repeat_interleave(torch.arange(len(batch.sizes)), batch.sizes)
        pooled = torch.zeros(len(batch.sizes), 4).index_add(0, rows, batch.nodes) / batch.sizes[:, None]
        return self.loss_of(pooled, batch.y)


def test_batches_that_cannot_be_split_are_collated_sample_by_sample():
    module, ewc = Graphs(), EWC(1.0)
    fit(module, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate_graphs), ewc)
    agree(ewc.importance, oracle(module, data(0), module.loss_of))
    single, ewc = DataLoader(data(0).dataset, batch_size=1, collate_fn=collate_graphs), EWC(1.0)
    ewc.consolidate(None, module, single)
    agree(ewc.importance, oracle(module, data(0), module.loss_of))


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        yield from data(0).dataset


def test_batches_that_nobody_can_split_are_refused():
    loader = DataLoader(Stream(), batch_size=6, collate_fn=collate_graphs)
    message = r"a batch of type 'Graph' that cannot be split into samples; expected .* HINT: .* batch_size=1"
    with pytest.raises(InputError, match=message):
        EWC(1.0).consolidate(None, Graphs(), loader)
    ewc, module = EWC(1.0), Graphs()
    ewc.consolidate(None, module, DataLoader(Stream(), batch_size=1, collate_fn=collate_graphs))
    agree(ewc.importance, oracle(module, data(0), module.loss_of))


def test_what_cannot_work_is_said_before_training():
    class Broken(Adapted):
        trained = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if len(batch[0]) < 4:
                raise ArithmeticError("too few")
            self.trained = True
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1], label_smoothing=0.1)

        def on_train_batch_end(self, *args: Any) -> None:
            raise AssertionError("training has started")

    message = r"Broken.training_step on one sample raised ArithmeticError: too few; expected .* HINT: give logits_fn"
    with pytest.raises(InputError, match=message):
        fit(Broken(), data(0), EWC(1.0))
    wrong = EWC(1.0, logits_fn=lambda module, batch: (module(batch[0]).sum(), batch[1]))
    with pytest.raises(InputError, match=r"logits of shape \(\); expected \(N, C\)"):
        fit(Broken(), data(0), wrong)


def test_an_empty_loader_and_fetching_steps_are_refused():
    with pytest.raises(InputError, match=r"a dataloader without batches; expected the task's training data"):
        EWC(1.0).consolidate(None, Net(), [])

    class Fetching(Adapted):
        def training_step(self, dataloader_iter: Any) -> Any:
            raise AssertionError

    with pytest.raises(InputError, match=r"Fetching.training_step\(dataloader_iter\); expected"):
        EWC(1.0).consolidate(None, Fetching(), data(0))
