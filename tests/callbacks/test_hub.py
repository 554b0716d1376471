import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_cl.callbacks._hub import TrainingStepHub, loss_of, with_loss
from lightning_cl.errors import InputError


class Plain(LightningModule):
    """A module as people write them: nothing in it knows of hubs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(3, 2)
        self.mean = MeanMetric()
        self.logged: list[int] = []

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.loss(batch)
        self.mean(loss)
        self.log("loss", loss)
        self.log_dict({"mean": self.mean}, on_epoch=True)
        self.logged.append(len(batch[1]))
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class WithoutIndex(Plain):
    def training_step(self, batch: Any) -> Any:
        return {"loss": self.loss(batch), "extra": 1}


class AnyArguments(Plain):
    def training_step(self, *args: Any) -> Any:
        assert len(args) == 2
        return self.loss(args[0])


class Skips(Plain):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Extra(Callback):
    """Adds ``weight`` times the loss on another batch."""

    def __init__(self, weight: float = 1.0, order: int = 0, calls: list[Any] | None = None) -> None:
        self.weight, self.order, self.calls = weight, order, calls if calls is not None else []
        self.other = (torch.ones(5, 3), torch.zeros(5, dtype=torch.long))
        self.hub: TrainingStepHub | None = None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.hub = TrainingStepHub.attach(pl_module, self.listen, name="Extra", order=self.order)

    def teardown(self, *args: Any, **kwargs: Any) -> None:
        if self.hub is not None:
            self.hub.detach(self.listen)

    on_exception = teardown

    def on_train_batch_end(self, *args: Any) -> None:
        self.hub.require_fired()

    def listen(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        self.calls.append((self.order, len(batch[1]), batch_idx))
        other, own = call(self.other), loss_of(output)
        return output if other is None or own is None else with_loss(output, own + self.weight * other)


def loader() -> DataLoader:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, torch.arange(8) % 2), batch_size=4)


def fit(module: LightningModule, *callbacks: Callback, validation: DataLoader | None = None, **options: Any) -> Trainer:
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "enable_progress_bar": False} | options
    trainer = Trainer(accelerator="cpu", enable_model_summary=False, callbacks=list(callbacks), **options)
    trainer.fit(module, loader(), validation)
    return trainer


def by_hand(weight: float) -> Tensor:
    module, other = Plain(), Extra().other
    for batch in loader():
        module.zero_grad()
        (module.loss(batch) + weight * module.loss(other)).backward()
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= 0.1 * parameter.grad
    return module.net.weight.detach()


@pytest.mark.parametrize("kind", [Plain, WithoutIndex, AnyArguments])
def test_the_extra_loss_is_trained_on_whatever_the_signature(kind: type[Plain]):
    module = kind()
    fit(module, Extra(0.5))
    torch.testing.assert_close(module.net.weight.detach(), by_hand(0.5))
    assert "training_step" not in module.__dict__


def test_two_callbacks_share_one_wrapper_and_are_called_in_order():
    calls: list[Any] = []
    module = Plain()
    fit(module, Extra(0.5, order=1, calls=calls), Extra(0.25, order=0, calls=calls))
    assert calls == [(0, 4, 0), (1, 4, 0), (0, 4, 1), (1, 4, 1)]
    torch.testing.assert_close(module.net.weight.detach(), by_hand(0.75))


def test_the_second_pass_neither_logs_nor_touches_metrics():
    with_extra, without = Plain(), Plain()
    a, b = fit(with_extra, Extra(0.0)), fit(without)
    assert a.callback_metrics == b.callback_metrics
    assert a.callback_metrics["mean"] > 0
    assert with_extra.logged == [4, 5, 4, 5], "the user's step did run on the other batch"


def test_accumulation_divides_both_losses():
    module, reference = Plain(), Plain()
    fit(module, Extra(0.5), accumulate_grad_batches=2)
    sum(0.5 * (reference.loss(b) + 0.5 * reference.loss(Extra().other)) for b in loader()).backward()  # type: ignore[union-attr]
    expected = reference.net.weight - 0.1 * reference.net.weight.grad
    torch.testing.assert_close(module.net.weight.detach(), expected.detach())


def test_a_skipped_step_stays_skipped():
    module = Skips()
    fit(module, Extra())
    assert torch.equal(module.net.weight, Skips().net.weight)


def test_contexts_stand_around_the_users_own_step_the_lowest_order_outermost():
    module, events = Plain(), []

    def attach(order: int) -> None:
        @contextlib.contextmanager
        def around() -> Any:
            events.append(("in", order))
            yield
            events.append(("out", order))

        def listen(call: Any, batch: Any, batch_idx: int, output: Any) -> Any:
            call(batch)
            events.append(("listens", order))
            return output

        TrainingStepHub.attach(module, listen, name="x", order=order, around=around)

    attach(1)
    attach(0)
    module.training_step(next(iter(loader())), 0)
    assert events == [("in", 0), ("in", 1), ("out", 1), ("out", 0), ("listens", 0), ("listens", 1)]


def test_other_callers_of_training_step_are_left_alone():
    calls: list[Any] = []
    module = Plain()
    fit(module, Extra(calls=calls), validation=loader())
    assert len(calls) == 2, "validation_step calls self.training_step too"


def test_the_wrapper_goes_after_an_exception_and_comes_back():
    class Fails(Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            raise RuntimeError("stop")

    module = Plain()
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, Extra(), Fails())
    assert "training_step" not in module.__dict__
    fit(module, Extra(0.5))
    torch.testing.assert_close(module.net.weight.detach(), by_hand(0.5))


def test_the_wrapper_is_counted_and_attaching_twice_is_once():
    module, one, two = Plain(), Extra(), Extra()
    hub = TrainingStepHub.attach(module, one.listen, name="one")
    assert TrainingStepHub.attach(module, two.listen, name="two") is hub
    assert TrainingStepHub.attach(module, two.listen, name="two") is hub
    module.training_step(next(iter(loader())), 0)
    assert (len(one.calls), len(two.calls)) == (1, 1)
    hub.detach(one.listen)
    hub.detach(one.listen)
    assert "training_step" in module.__dict__
    hub.detach(two.listen)
    assert "training_step" not in module.__dict__


def test_a_deep_copy_has_its_own_training_step():
    module = Plain()
    TrainingStepHub.attach(module, Extra().listen, name="Extra")
    clone = copy.deepcopy(module)
    with torch.no_grad():
        clone.net.weight.zero_()
        clone.net.bias.zero_()
    assert loss_of(clone.training_step(next(iter(loader())), 0)).item() == pytest.approx(0.693147, abs=1e-5)


def test_torch_compile_of_the_module_keeps_the_extra_loss():
    module = Plain()
    fit(torch.compile(module, backend="eager"), Extra(0.5))  # type: ignore[arg-type]
    torch.testing.assert_close(module.net.weight.detach(), by_hand(0.5))


@pytest.mark.filterwarnings("ignore")
def test_ddp_keeps_the_extra_loss():
    module = Plain()
    try:
        fit(module, Extra(0.5), strategy="ddp", devices=1, use_distributed_sampler=False)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(module.net.weight.detach(), by_hand(0.5))


def test_a_wrapper_that_is_bypassed_is_reported():
    class Replaces(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.training_step = lambda batch, batch_idx: pl_module.loss(batch)

    with pytest.raises(InputError, match=r"a training step of Plain that went past Extra; expected .*HINT: something"):
        fit(Plain(), Extra(), Replaces())


def test_manual_optimization_is_refused_by_name():
    module = Plain()
    module.automatic_optimization = False
    with pytest.raises(InputError, match=r"Extra on Plain with automatic_optimization=False; expected.*HINT: return"):
        fit(module, Extra())


def test_a_step_that_fetches_its_own_batches_is_refused():
    class Fetches(Plain):
        def training_step(self, dataloader_iter: Any) -> Any:
            return self.loss(next(dataloader_iter)[0])

    with pytest.raises(InputError, match=r"Extra on Fetches with training_step\(dataloader_iter\); expected.*HINT"):
        fit(Fetches(), Extra())


def test_reading_and_replacing_the_loss():
    loss, new = torch.tensor(1.0), torch.tensor(2.0)
    assert loss_of(loss) is loss
    assert loss_of({"loss": loss, "x": 1}) is loss
    assert loss_of(None) is None
    assert with_loss(loss, new) is new
    output = {"loss": loss, "x": 1}
    assert with_loss(output, new) == {"loss": new, "x": 1}
    assert output["loss"] is loss
    assert with_loss(None, new) is None
