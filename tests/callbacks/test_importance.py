"""Importance in modules that know nothing of us: the same numbers as an autograd loop, and no trace left."""

import logging
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

from lightning_cl import EWC
from lightning_cl.errors import InputError
from lightning_cl.functional import diagonal_fisher
from tests.callbacks.ewc_examples import Net, data
from tests.callbacks.importance_examples import Adapted, assert_agree, oracle
from tests.callbacks.replay_examples import fit


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


@pytest.mark.parametrize("labels", ["exact", "mc", "empirical", "predicted"])
@pytest.mark.parametrize("make", [Net, LogProbabilities])
def test_logits_are_found_if_their_cross_entropy_is_the_loss(make: Any, labels: Any, caplog: Any):
    module, ewc = make(), EWC(1.0, labels=labels)
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        ewc.consolidate(None, module, data(0))
    assert not caplog.records
    assert_agree(
        ewc.importance, diagonal_fisher(module, data(0), labels=labels, logits_fn=lambda m, b: (m.net(b[0]), b[1]))
    )


def test_logits_are_found_in_a_dict_with_strings():
    class Dicts(Adapted):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return self.loss_of(batch["image"], batch["label"])

    def collate(samples: list[Any]) -> Any:
        x, y = (torch.stack(part) for part in zip(*samples, strict=True))
        return {"image": x, "name": [str(i) for i in range(len(x))], "label": y}

    module, ewc = Dicts(), EWC(1.0)
    ewc.consolidate(None, module, DataLoader(data(0).dataset, batch_size=6, collate_fn=collate))
    assert_agree(ewc.importance, diagonal_fisher(module, data(0)))


@pytest.mark.parametrize("make", [Smoothed, AnyArguments, Squeezing, InTraining])
def test_another_loss_is_taken_sample_by_sample_and_said(make: Any, caplog: pytest.LogCaptureFixture):
    module, ewc = make(), EWC(1.0)
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        ewc.consolidate(None, module, data(0))
    (record,) = caplog.records
    assert "labels='exact' needs logits" in record.getMessage()
    assert "using labels='empirical'" in record.getMessage()
    loss = module.loss_of if make is not Squeezing else lambda x, y: nn.functional.cross_entropy(module.net(x), y)
    assert_agree(ewc.importance, oracle(module, data(0), loss))


def test_the_warning_comes_before_training_and_once(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(Smoothed(), data(0), EWC(1.0))
    assert len([r for r in caplog.records if "needs logits" in r.getMessage()]) == 1
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="lightning_cl"):
        fit(Smoothed(), data(0), EWC(1.0, labels="empirical"))
    assert not [r for r in caplog.records if "needs logits" in r.getMessage()]


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
