"""Optimizers and schedulers of the module over a sequence."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.nn.functional import cross_entropy

from lightning_cl import run_sequence
from lightning_cl.streams import TaskLoader
from tests.finetuning.examples import FEW_EPOCHS, module, stream

NAMES = [f"c{i}" for i in range(6)]
ADAM = partial(torch.optim.Adam, lr=0.01)


class Watch(Callback):
    """Learning rates, and the optimizer's state of the head at the start of every fit."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.moments: list[Any] = []
        self.optimizers: list[Any] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.optimizers.append(trainer.optimizers[0])
        state = trainer.optimizers[0].state.get(pl_module.head.weight, {})
        self.moments.append(copy.deepcopy(state.get("exp_avg")))

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def learn(model: Any, watch: Watch | None = None, **options: Any) -> dict[str, Any]:
    return run_sequence(
        model, stream(), [watch] if watch else [], trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, **options
    )


def test_carried_state_equals_one_optimizer_kept_over_all_tasks() -> None:
    model = module(head="fixed", class_names=NAMES, active_classes="all", optimizer=ADAM)
    oracle = copy.deepcopy(model)
    learn(model, optimizer_state="keep")
    optimizer = ADAM(oracle.parameters())
    for task in stream():
        loader = TaskLoader(task.train, 10, shuffle=True, task_id=task.id)
        for epoch in range(2):
            loader.set_epoch(epoch)
            for x, y in loader:
                optimizer.zero_grad()
                cross_entropy(oracle.head(oracle.backbone(x)), y).backward()
                optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, oracle.state_dict()[name])
    reset = module(head="fixed", class_names=NAMES, active_classes="all", optimizer=ADAM)
    learn(reset)
    assert not torch.equal(reset.head.weight, model.head.weight)


def test_carried_moments_are_padded_for_new_rows() -> None:
    watch = Watch()
    learn(module(optimizer=ADAM), watch, optimizer_state="keep")
    assert watch.moments[0] is None
    assert [m.shape for m in watch.moments[1:]] == [(4, 16), (6, 16)]
    for rows, moment in ((2, watch.moments[1]), (4, watch.moments[2])):
        assert torch.equal(moment[rows:], torch.zeros(2, 16))
        assert (moment[:rows].abs().sum(1) > 0).all()


@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_optimizer_and_scheduler_are_built_anew_for_each_task(interval: str) -> None:
    watch = Watch()
    scheduler = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    learn(module(optimizer=ADAM, scheduler=scheduler, scheduler_interval=interval), watch)
    one = [0.01] * 4 + [0.005] * 4 if interval == "epoch" else [0.01 * 0.5**n for n in range(8)]
    assert watch.rates == pytest.approx(one * 3)
    assert len({id(optimizer) for optimizer in watch.optimizers}) == 3
    assert watch.moments == [None] * 3


def test_plateau_scheduler_reads_the_monitored_metric() -> None:
    watch = Watch()
    scheduler = partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=1e3, threshold_mode="abs")
    tasks = stream(validation_fraction=0.2)
    model = module(optimizer=ADAM, scheduler=scheduler, monitor="val_loss")
    run_sequence(
        model,
        tasks,
        [watch],
        trainer=partial(Trainer, max_epochs=3, accelerator="cpu"),
        progress_bar=False,
        limit_tasks=1,
    )
    assert watch.rates == pytest.approx([0.01, 0.01, 0.001])


def test_from_a_config(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    from lightning_cl._conf import conf_dir, register_resolvers

    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", ["optimizer=sgd", "scheduler=cosine", "trainer.max_epochs=7", "optimizer.lr=0.3"])
    model = instantiate(cfg.model, input_shape=(8,), class_names=NAMES, _convert_="all")
    built = model.configure_optimizers()
    assert isinstance(built["optimizer"], torch.optim.SGD)
    assert built["optimizer"].param_groups[0]["lr"] == 0.3
    assert isinstance(built["lr_scheduler"]["scheduler"], torch.optim.lr_scheduler.CosineAnnealingLR)
    assert built["lr_scheduler"]["scheduler"].T_max == 7
