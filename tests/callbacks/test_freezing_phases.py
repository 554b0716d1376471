"""Phases: what they may be, when they thaw, and what the table says."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_cl import FreezingSchedule
from lightning_cl.callbacks._freezing_phases import parse
from lightning_cl.errors import InputError
from tests.callbacks.freezing_examples import Net, largest_difference, loader, train, weights

HEAD: dict[str, Any] = {"thaw": "head"}


class Trainable(Callback):
    """How many parameters require a gradient at each optimizer step."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.counts.append(sum(p.requires_grad for p in pl_module.parameters()))
        assert all((p.grad is None) == (not p.requires_grad) for p in pl_module.parameters())


class Metric(Callback):
    """Logs these values, one an epoch, in validation or in training."""

    def __init__(self, values: list[float], name: str = "metric", validation: bool = True) -> None:
        self.values, self.name, self.validation = values, name, validation

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if not self.validation:
            pl_module.log(self.name, self.values[trainer.current_epoch], on_step=False, on_epoch=True)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.validation and not trainer.sanity_checking:
            pl_module.log(self.name, self.values[trainer.current_epoch])


def thaws(*phases: dict[str, Any], others: tuple[Callback, ...] = (), **options: Any) -> list[int]:
    """The optimizer steps, four an epoch, before which something was thawed."""
    watch = Trainable()
    train(Net(), FreezingSchedule(phases=[HEAD, *phases], table=False), *others, watch, **options)
    return [i for i in range(1, len(watch.counts)) if watch.counts[i] != watch.counts[i - 1]]


@pytest.mark.parametrize(
    ("trigger", "options", "expected"),
    [
        ({"epoch": 2}, {}, 8),
        ({"step": 5}, {}, 5),
        ({"step": 3}, {"accumulate_grad_batches": 2}, 3),
        ({"fraction": 0.5}, {}, 6),
        ({"fraction": 0.3}, {}, 4),
        ({"fraction": 0.5}, {"max_steps": 10}, 5),
        ({"fraction": 0.5}, {"max_steps": 6, "epochs": -1}, 3),
        ({"fraction": 0.5}, {"accumulate_grad_batches": 4, "epochs": 4}, 2),
    ],
)
def test_thaws_when_it_is_said(trigger: dict[str, Any], options: dict[str, Any], expected: int):
    assert thaws({"thaw": "all", **trigger}, **options) == [expected]


def test_several_phases_one_after_the_other():
    middle = {"thaw": "re:^backbone.5$", "epoch": 1}
    assert thaws({"thaw": "re:^neck$", "step": 2}, middle, {"thaw": "all", "fraction": 0.9}) == [2, 4, 11]
    # a phase waits for the one before it, and then is not late any more
    assert thaws({"thaw": "re:^neck$", "epoch": 2}, {"thaw": "all", "step": 1}) == [8]


PLATEAU: dict[str, Any] = {"monitor": "metric", "patience": 2}


@pytest.mark.parametrize("validation", [True, False])
@pytest.mark.parametrize(
    ("values", "settings", "expected"),
    [
        ([3.0, 2.0, 1.0, 1.0, 1.0, 1.0], {}, [20]),
        ([3.0, 2.0, 1.0, 0.9, 0.8, 0.7], {"min_delta": 0.5}, [20]),
        ([1.0, 2.0, 3.0, 4.0, 4.0, 4.0], {"mode": "min"}, [12]),
        ([1.0, 2.0, 3.0, 4.0, 4.0, 4.0], {"mode": "max"}, []),
    ],
)
def test_plateau(values: list[float], settings: dict[str, Any], expected: list[int], validation: bool):
    phase = {"thaw": "all", "plateau": {**PLATEAU, **settings}}
    metric = Metric(values, validation=validation)
    assert thaws(phase, others=(metric,), epochs=6, val=validation) == expected


def test_plateau_is_waited_for_anew_after_each_thaw_and_counts_validations_where_they_are_rarer():
    same = Metric([1.0] * 8)
    phases = [{"thaw": name, "plateau": {**PLATEAU, "patience": 1}} for name in ("re:^neck$", "all")]
    assert thaws(*phases, others=(same,), epochs=5, val=True) == [8, 16]
    assert thaws(*phases, others=(same,), epochs=9, val=True, check_val_every_n_epoch=2) == [16, 32]


def test_a_metric_that_is_not_logged_is_said():
    with pytest.raises(InputError, match=r"plateau of 'metric', which is not logged; expected one of \['constant'"):
        thaws({"thaw": "all", "plateau": PLATEAU}, epochs=2)


@pytest.mark.parametrize("step", [8, 12, 16])
def test_resumed_plateau_equals_the_uninterrupted(step: int, tmp_path: Path):
    def parts() -> list[Any]:
        return [FreezingSchedule(phases=[HEAD, {"thaw": "all", "plateau": PLATEAU}], table=False), Metric([1.0] * 5)]

    def net() -> Net:
        module = Net()
        module.backbone[3].p = module.drop.p = 0.0
        return module

    saver = ModelCheckpoint(tmp_path, "{step}", every_n_epochs=1, save_top_k=-1)
    whole, again, watch = net(), net(), Trainable()
    train(whole, *parts(), saver, val=True, epochs=5, enable_checkpointing=True)
    train(again, *parts(), watch, val=True, epochs=5, resume=str(tmp_path / f"step={step}.ckpt"))
    assert largest_difference(weights(whole), weights(again)) == 0.0
    assert watch.counts == [2 if i < 12 else 10 for i in range(step, 20)]


def test_what_the_user_froze_is_thawed_where_a_phase_names_it_and_given_back_frozen():
    module = Net()
    module.backbone.requires_grad_(False)
    before = weights(module)
    schedule = FreezingSchedule(phases=[HEAD, {"thaw": "all", "epoch": 1}], keep_frozen="re:^backbone.0$", table=False)
    train(module, schedule)
    after = weights(module)
    assert torch.equal(after["backbone.0.weight"], before["backbone.0.weight"])
    assert not torch.equal(after["backbone.5.weight"], before["backbone.5.weight"])
    assert [p.requires_grad for p in module.parameters()] == [False] * 6 + [True] * 4
    with schedule.as_fitted(module):
        assert [p.requires_grad for p in module.parameters()] == [False] * 2 + [True] * 8
    assert [p.requires_grad for p in module.parameters()] == [False] * 6 + [True] * 4


RECIPES: dict[str, tuple[dict[str, Any], list[int], int]] = {
    "linear_probe": ({}, [], 2),
    "lp_ft": ({}, [4], 10),
    "lp_ft ": ({"fraction": 0.25}, [3], 10),
    "gradual_unfreeze": ({}, [4, 8], 6),
    "last_k": ({"k": 2}, [], 4),
    "surgical_first": ({}, [], 8),
    "full": ({}, [], 10),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes(recipe: str):
    options, expected, trained = RECIPES[recipe]
    watch = Trainable()
    train(Net(), FreezingSchedule(recipe=recipe.strip(), recipe_options=options, table=False), watch)
    changes = [i for i in range(1, 12) if watch.counts[i] != watch.counts[i - 1]]
    assert watch.counts[-1] == trained
    assert changes == expected


def test_linear_probe_equals_a_plain_loop():
    module, oracle = Net(), Net()
    for net in (module, oracle):
        net.drop.p = 0.0
    train(module, FreezingSchedule(recipe="linear_probe", table=False), epochs=2)
    oracle.requires_grad_(False).eval()
    oracle.head.requires_grad_(True)
    optimizer, batches = oracle.configure_optimizers(), loader()
    for epoch in range(2):
        batches.set_epoch(epoch)
        for x, y in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(oracle(x), y).backward()
            optimizer.step()
    assert largest_difference(weights(module), weights(oracle)) == 0.0


def test_groups_of_ones_own_and_a_file_of_phases(tmp_path: Path):
    file = tmp_path / "schedule.yaml"
    file.write_text("phases:\n- thaw: top\n- {thaw: [middle, bottom], step: 3}\n")
    groups = {"bottom": "re:^backbone", "middle": "re:^neck$", "top": "re:^head$"}
    watch = Trainable()
    train(Net(), FreezingSchedule(phases=str(file), groups=groups, table=False), watch, epochs=1)
    assert watch.counts == [2, 2, 2, 10]


def test_table_is_printed_once_and_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture):
    schedule = FreezingSchedule(phases=[HEAD, {"thaw": "re:^neck$", "epoch": 1}])
    with caplog.at_level(logging.INFO, "lightning_cl"):
        for _ in range(2):
            train(Net(), schedule, epochs=2)
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()]
    assert ["0", "head", "from", "the", "start", "2", "27", "0.1"] in lines
    assert ["1", "re:^neck$", "epoch", "1", "2", "72", "0.1"] in lines
    assert ["-", "nothing", "else", "never", "6", "568", "-"] in lines
    assert printed.count("learning rate") == 1
    assert caplog.text.count("thaws re:^neck$, when epoch 1, tensors 2, parameters 72, learning rate 0.1") == 2
    assert caplog.text.count("re:^neck$ thawed in epoch 1, at step 4") == 2
    train(Net(), FreezingSchedule(phases=[HEAD], table=False), epochs=1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("phases", "said"),
    [
        ([{"thaw": "head", "epoch": 1}], r"phase 0, which thaws head at epoch 1; expected a first phase without"),
        ([HEAD, {"thaw": "all"}], "phase 1 with no trigger; expected one of epoch, step, fraction, plateau"),
        ([HEAD, {"thaw": "a", "step": 5}, {"thaw": "b", "step": 4}], "phase 2 at step 4, behind a phase at step 5"),
        ([HEAD, {"thaw": "all", "epoch": 1, "momentum": 1}], "phase 1 with momentum"),
        ("missing.yaml", r"phases='missing\.yaml'; expected a YAML file"),
        ([], r"phases=\[\]; expected a list"),
    ],
)
def test_bad_phases(phases: Any, said: str):
    with pytest.raises(InputError, match=said):
        FreezingSchedule(phases=phases)


def test_zero_is_the_start():
    assert parse([{"thaw": "head", "epoch": 0}])[0].when == "from the start"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"freeze": "a", "recipe": "lp_ft"}, "freeze and recipe; expected one of freeze, phases and recipe"),
        ({"recipe": "lpft"}, "recipe 'lpft'; expected one of linear_probe"),
        ({"recipe_options": {"k": 1}}, "recipe_options without a recipe"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        FreezingSchedule(**arguments)


@pytest.mark.parametrize(
    ("schedule", "said"),
    [
        ({"phases": [HEAD, {"thaw": "head", "epoch": 1}]}, r"phase 1 \(head\) has nothing left to thaw"),
        ({"phases": [{"thaw": "haed"}]}, "selector 'haed'"),
        (
            {"phases": [HEAD, {"thaw": "all", "epoch": 1, "lr": 0.01}]},
            "lr=0.01 for all, of which the optimizer holds 8",
        ),
        ({"recipe": "lp_ft", "recipe_options": {"every": 2}}, "recipe 'lp_ft' with every"),
    ],
)
def test_refused_at_the_start_of_the_fit(schedule: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        train(Net(), FreezingSchedule(**schedule, table=False))


def test_fractions_of_an_endless_training_and_a_second_schedule_are_refused():
    phases = [HEAD, {"thaw": "all", "fraction": 0.5}]
    with pytest.raises(InputError, match="a phase by 'fraction' in a training without an end"):
        train(Net(), FreezingSchedule(phases=phases), epochs=-1)
    with pytest.raises(InputError, match="phases or a recipe beside another FreezingSchedule"):
        train(Net(), FreezingSchedule(phases=phases), FreezingSchedule(name="other"))
