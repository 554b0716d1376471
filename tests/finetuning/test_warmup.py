"""Warm-up: against the formula, with several groups, in the module and the config, resumed."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, ReduceLROnPlateau

from lightning_cl import Replay, run_sequence, warmup
from lightning_cl.errors import InputError
from lightning_cl.finetuning import warmup_cosine
from tests.finetuning.examples import FEW_EPOCHS, module, plain_loader, stream, trainer


def optimizer(*rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def rates(sgd: torch.optim.Optimizer, scheduler: Any, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        scheduler.step()
    return found


def cosine(step: int, total: int, start: int, factor: float) -> float:
    """What the k-th step's rate is multiplied by."""
    if step < start:
        return factor + (1 - factor) * step / start
    return (1 + math.cos(math.pi * (step - start) / (total - start))) / 2


def test_linear_then_cosine_by_the_formula_for_every_group():
    sgd = optimizer(1.0, 0.25)
    found = rates(sgd, warmup_cosine(sgd, total_steps=20, warmup_fraction=0.25, start_factor=0.1), 20)
    expected = [[r * cosine(i, 20, 5, 0.1) for r in (1.0, 0.25)] for i in range(20)]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), atol=1e-7)


def test_what_comes_after_begins_when_the_warm_up_is_over():
    for after in (lambda o: CosineAnnealingLR(o, 4), "instance"):
        sgd = optimizer(2.0)
        made = CosineAnnealingLR(sgd, 4) if after == "instance" else after
        found = [row[0] for row in rates(sgd, warmup(sgd, 2, made, start_factor=0.5), 7)]
        assert found == pytest.approx([1.0, 1.5, 2.0, *(1 + math.cos(math.pi * i / 4) for i in (1, 2, 3, 4))], abs=1e-7)
    sgd = optimizer(2.0)
    assert [row[0] for row in rates(sgd, warmup(sgd, 0), 3)] == [2.0] * 3
    sgd = optimizer(2.0)
    assert [row[0] for row in rates(sgd, warmup(sgd, 0, partial(ConstantLR, factor=0.5, total_iters=9)), 2)] == [
        1.0
    ] * 2


class Watch(Callback):
    """Rates of every step."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


OPTIONS: dict[str, Any] = {
    "class_names": [f"c{i}" for i in range(6)],
    "optimizer": partial(torch.optim.SGD, lr=0.5, momentum=0.9),
    "scheduler": partial(warmup_cosine, warmup_fraction=0.25),
    "scheduler_interval": "step",
}


def test_the_module_gives_the_number_of_steps():
    watch = Watch()
    trainer(callbacks=[watch]).fit(module(**OPTIONS), plain_loader())  # 2 epochs of 4 batches
    assert watch.rates == pytest.approx([0.5 * cosine(i, 8, 2, 0.01) for i in range(8)])
    watch = Watch()
    trainer(callbacks=[watch], accumulate_grad_batches=2).fit(module(**OPTIONS), plain_loader())
    assert watch.rates[::2] == pytest.approx([0.5 * cosine(i, 4, 1, 0.01) for i in range(4)])
    watch = Watch()
    by_epoch = module(**OPTIONS | {"scheduler_interval": "epoch"})
    trainer(callbacks=[watch], max_epochs=4).fit(by_epoch, plain_loader())
    assert watch.rates[::4] == pytest.approx([0.5 * cosine(i, 4, 1, 0.01) for i in range(4)])
    assert module(**OPTIONS).configure_optimizers()["lr_scheduler"]["interval"] == "step"  # without a Trainer


def test_over_a_sequence_with_replay():
    watch = Watch()
    model = module(**OPTIONS | {"class_names": []})
    run_sequence(
        model, stream(), [Replay(20), watch], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, updates_per_batch=2
    )
    assert len(watch.rates) == 3 * 16  # 40 samples of each task, each batch twice, two epochs
    for task in range(3):
        assert watch.rates[16 * task : 16 * task + 16] == pytest.approx(
            [0.5 * cosine(i, 16, 4, 0.01) for i in range(16)]
        )


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_equals_uninterrupted(epoch: int, tmp_path: Path):
    whole, resumed = (module(**OPTIONS | {"parameter_groups": {"layer_decay": 0.5}}) for _ in range(2))
    saves = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    trainer(max_epochs=4, enable_checkpointing=True, callbacks=[saves]).fit(whole, plain_loader())
    path = tmp_path / f"epoch={epoch}.ckpt"
    trainer(max_epochs=4).fit(resumed, plain_loader(), ckpt_path=path, weights_only=True)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, r"steps=-1 of a warm-up; expected an integer >= 0"),
        ({"steps": 1.5}, r"steps=1.5 of a warm-up"),
        ({"start_factor": 0}, r"start_factor=0; expected a number in \(0, 1\]"),
        ({"after": ReduceLROnPlateau}, r"after=ReduceLROnPlateau\); expected a scheduler that reads no metric"),
        ({"after": CosineAnnealingLR(optimizer(1.0), 3)}, r"of another optimizer; expected a scheduler of this one"),
    ],
)
def test_wrong_warm_ups_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        warmup(optimizer(1.0), **{"steps": 3, **options})


def test_wrong_lengths_are_refused():
    for options, message in [
        ({"total_steps": 0}, r"total_steps=0; expected an integer >= 1"),
        ({"total_steps": 5, "warmup_fraction": 1}, r"warmup_fraction=1; expected a number in \[0, 1\)"),
    ]:
        with pytest.raises(InputError, match=message):
            warmup_cosine(optimizer(1.0), **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"total_steps, in a training without an end; .*HINT: set trainer.max_epochs"):
        trainer(max_epochs=-1, limit_train_batches=1).fit(module(**OPTIONS), plain_loader())
