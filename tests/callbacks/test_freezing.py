import copy
import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.optim import lr_scheduler

from lightning_cl import EWC, FreezingSchedule
from lightning_cl.callbacks._freezing_modes import HeldModules, frozen_modules
from lightning_cl.callbacks._freezing_plan import by_name, chosen_by_name
from lightning_cl.callbacks._random_state import RandomState
from lightning_cl.errors import InputError
from tests.callbacks.freezing_examples import Net, largest_difference, loader, train, weights

BACKBONE = ["backbone"]
OFTEN: dict[str, Any] = {"val_check_interval": 2}


class Watch(Callback):
    """Modes, gradients and learning rates at every step, behind the schedule."""

    def __init__(self) -> None:
        self.frozen: list[bool] = []
        self.gradients: list[set[str]] = []
        self.rates: list[float] = []
        self.groups: list[tuple[int, tuple[int, ...]]] = []

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.frozen.append(not any(m.training for m in pl_module.backbone.modules()))
        self.gradients.append({name for name, p in pl_module.named_parameters() if p.grad is not None})
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.groups += [(id(group), tuple(map(id, group["params"]))) for group in optimizer.param_groups]


def test_frozen_part_is_as_in_evaluation_and_does_not_move() -> None:
    module, watch = Net(), Watch()
    before = weights(module)
    reference = copy.deepcopy(module).eval()
    train(module, FreezingSchedule(BACKBONE, until_epoch=None), watch)
    after = weights(module)
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("backbone"))  # running statistics too
    assert all(not torch.equal(after[n], before[n]) for n in before if not n.startswith("backbone"))
    assert watch.frozen == [True] * 12
    assert watch.gradients == [{"neck.weight", "neck.bias", "head.weight", "head.bias"}] * 12
    x = next(iter(loader()))[0]
    assert torch.equal(module.features[0], reference.backbone(x))
    assert module.training
    assert all(m.training for m in module.modules())
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("val", [False, True])
def test_any_train_call_leaves_it_in_eval(val: bool) -> None:
    module, watch = Net(), Watch()
    module.train_everywhere = True
    stats = module.backbone[1].running_mean.clone()
    train(
        module,
        FreezingSchedule(BACKBONE, until_epoch=None),
        watch,
        val=val,
        **(OFTEN if val else {}),
    )
    assert watch.frozen == [True] * 12
    assert torch.equal(module.backbone[1].running_mean, stats)
    assert "train" not in module.backbone.__dict__


def test_until_an_epoch_equals_a_plain_torch_loop() -> None:
    module, watch = Net(), Watch()
    oracle = copy.deepcopy(module)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        train(module, FreezingSchedule(BACKBONE, until_epoch=2), watch, epochs=4)
        torch.manual_seed(5)
        optimizer = oracle.configure_optimizers()
        batches = loader()
        for epoch in range(4):
            oracle.train()
            oracle.backbone.train(epoch >= 2).requires_grad_(epoch >= 2)
            batches.set_epoch(epoch)
            for x, y in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(oracle(x), y).backward()
                optimizer.step()
    assert largest_difference(weights(module), weights(oracle)) == 0.0
    assert watch.frozen == [True] * 8 + [False] * 8
    assert [len(names) for names in watch.gradients] == [4] * 8 + [10] * 8


OPTIMIZERS = {
    "sgd": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "adam": functools.partial(torch.optim.Adam, lr=0.01),
}
SCHEDULERS = {
    "LambdaLR": functools.partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "OneCycleLR": functools.partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=4),
    "CyclicLR": functools.partial(
        lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, cycle_momentum=False, step_size_up=2
    ),
    "StepLR": functools.partial(lr_scheduler.StepLR, step_size=1),
    "CosineAnnealingLR": functools.partial(lr_scheduler.CosineAnnealingLR, T_max=3),
    "ReduceLROnPlateau": functools.partial(lr_scheduler.ReduceLROnPlateau, patience=0),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_users_optimizer_and_scheduler_are_left_alone(optimizer: str, scheduler: str) -> None:
    with_schedule, without = Watch(), Watch()
    module = Net(OPTIMIZERS[optimizer], SCHEDULERS[scheduler])
    before = weights(module)
    trainer = train(module, FreezingSchedule(BACKBONE, until_epoch=1), with_schedule)
    train(Net(OPTIMIZERS[optimizer], SCHEDULERS[scheduler]), without)
    assert with_schedule.rates == without.rates
    assert len(set(with_schedule.rates)) > 1
    assert len(set(with_schedule.groups)) == 1  # one group object with the same parameters at every step
    assert with_schedule.groups[0][1] == tuple(id(p) for p in module.parameters())
    assert len(trainer.optimizers[0].param_groups) == 1
    del before["backbone.0.bias"]  # BatchNorm behind it takes it away: its gradient is zero
    assert all(not torch.equal(value, weights(module)[name]) for name, value in before.items())


@pytest.mark.parametrize("step", [2, 4, 6, 8], ids=["before", "at the thaw", "after", "an epoch later"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resumed_equals_uninterrupted(tmp_path: Any, optimizer: str, step: int) -> None:
    def parts() -> list[Any]:
        return [FreezingSchedule(BACKBONE, until_epoch=1), RandomState()]

    make = functools.partial(Net, OPTIMIZERS[optimizer], SCHEDULERS["CosineAnnealingLR"])
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1, monitor=None)
    whole = make()
    trainer = train(whole, *parts(), saver, enable_checkpointing=True)
    again, watch = make(), Watch()
    resumed = train(again, *parts(), watch, resume=str(tmp_path / f"step={step}.ckpt"))
    assert largest_difference(weights(whole), weights(again)) == 0.0
    for p, q in zip(whole.parameters(), again.parameters(), strict=True):
        ours, theirs = trainer.optimizers[0].state[p], resumed.optimizers[0].state[q]
        assert ours.keys() == theirs.keys()
        assert all(
            torch.equal(torch.as_tensor(ours[k]), torch.as_tensor(theirs[k])) for k in ours if ours[k] is not None
        )
    assert watch.frozen == [n < 4 for n in range(step, 12)]


def test_resumes_behind_the_thaw_without_its_own_state(tmp_path: Any) -> None:
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    train(Net(), saver, enable_checkpointing=True)
    module, watch = Net(), Watch()
    train(module, FreezingSchedule(BACKBONE, until_epoch=1), watch, resume=str(tmp_path / "step=6.ckpt"))
    assert watch.frozen == [False] * 6


def test_what_the_user_froze_stays_frozen() -> None:
    module = Net()
    module.backbone[0].requires_grad_(False)
    before = weights(module)
    train(module, FreezingSchedule(BACKBONE, until_epoch=1))
    assert torch.equal(module.backbone[0].weight, before["backbone.0.weight"])
    assert not module.backbone[0].weight.requires_grad
    assert not torch.equal(module.backbone[5].weight, before["backbone.5.weight"])


def test_parameters_of_equal_values_are_told_apart() -> None:
    module = Net()
    with torch.no_grad():
        module.neck.weight.copy_(module.backbone[5].weight[:, :8])
        module.backbone.append(nn.Linear(8, 8))
        module.backbone[6].load_state_dict(module.neck.state_dict())
    before = weights(module)
    train(module, FreezingSchedule(BACKBONE, until_epoch=None))
    assert torch.equal(module.backbone[6].weight, before["backbone.6.weight"])
    assert not torch.equal(module.neck.weight, before["neck.weight"])


def test_tied_head_weight_is_the_heads() -> None:
    class Tied(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5)
            self.out.weight = self.embed.weight

    tied = Tied()
    chosen = chosen_by_name(tied, "all_but_head")
    assert chosen
    assert all(p is not tied.embed.weight for p in chosen.values())


def freeze(module: nn.Module, which: Any = "all_but_head") -> set[str]:
    """Names of the modules that are held in eval mode."""
    plan, held = by_name(module, which, 1), HeldModules()
    held.hold(frozen_modules(module, {id(p) for p in plan.frozen(1).values()}, set(), plan.named))
    module.train()
    names = {name for name, part in module.named_modules() if not part.training}
    held.release([])
    assert all(part.training for part in module.modules())
    return names


class Flat(nn.Module):
    """Everything directly under the root."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_in = nn.Dropout()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2, affine=False)
        self.drop = nn.Dropout()
        self.hidden = nn.Linear(2, 2)
        self.drop_out = nn.Dropout()
        self.head = nn.Linear(2, 2)


def test_modules_without_parameters_go_with_their_neighbours() -> None:
    assert freeze(Flat()) == {"drop_in", "conv", "norm", "drop", "hidden"}  # not the dropout before the head
    assert freeze(Flat(), ["^conv", "^hidden", "^drop_out$"]) == {
        "drop_in",
        "conv",
        "norm",
        "drop",
        "hidden",
        "drop_out",
    }
    assert freeze(nn.ModuleDict({"net": Flat()})) == {f"net.{n}" for n in ("drop_in", "conv", "norm", "drop", "hidden")}


def test_containers_with_their_own_use_of_the_mode_are_held_too() -> None:
    model = nn.ModuleDict({"body": nn.MultiheadAttention(4, 2, dropout=0.5), "head": nn.Linear(4, 2)})
    assert freeze(model) == {"body", "body.out_proj"}


def test_all_but_head_keeps_a_head_with_dropout_in_its_own_container() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout()), nn.Sequential(nn.Dropout(), nn.Linear(2, 2)))
    assert freeze(model) == {"0", "0.0", "0.1"}


def test_two_schedules_thaw_one_part_after_the_other() -> None:
    class Parts(Watch):
        frozen: list[Any]

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.frozen.append((pl_module.backbone[1].training, pl_module.neck.training))

    for first, second in ((1, 2), (2, 1)):
        module, watch = Net(), Parts()
        train(
            module,
            FreezingSchedule(BACKBONE, until_epoch=first, name="a"),
            FreezingSchedule(["neck"], until_epoch=second, name="b"),
            watch,
        )
        assert watch.frozen[::4] == [(e >= first, e >= second) for e in range(3)]
        assert all(p.requires_grad for p in module.parameters())


def test_module_that_came_in_eval_and_was_never_told_otherwise_returns_so() -> None:
    module = Net()
    module.backbone.eval()
    train(module, FreezingSchedule(BACKBONE, until_epoch=1))
    assert not module.backbone.training
    assert module.neck.training


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_module_as_it_was(error: type[BaseException]) -> None:
    class Breaks(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise error

    module = Net()
    with pytest.raises((error, SystemExit)):
        train(module, FreezingSchedule(BACKBONE, until_epoch=None), Breaks())
    assert all(p.requires_grad for p in module.parameters())
    assert all(m.training and "train" not in m.__dict__ for m in module.modules())


def test_a_copy_made_inside_the_fit_is_its_own() -> None:
    class Copies(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.copy = copy.deepcopy(pl_module.backbone)

    copies, module = Copies(), Net()
    train(module, FreezingSchedule(BACKBONE, until_epoch=None), copies, epochs=1)
    module.eval()
    assert copies.copy.train().training
    assert all(m.training for m in copies.copy.modules())
    assert not any(m.training for m in module.modules())


def test_ewc_sees_what_was_thawed_and_skips_what_was_not() -> None:
    for until, expected in ((1, 10), (None, 4)):
        module, ewc = Net(), EWC(10.0, logits_fn=lambda module, batch: (module(batch[0]), batch[1]))
        train(module, FreezingSchedule(BACKBONE, until_epoch=until), ewc, epochs=2)
        assert len(ewc.importance) == expected


def test_ewc_pulls_on_parameters_from_the_step_they_are_thawed_at() -> None:
    class Seen(Callback):
        def __init__(self) -> None:
            self.pulled: list[bool] = []

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            with torch.no_grad():  # away from the anchor, without a gradient of the loss
                pl_module.backbone[0].weight.fill_(9.0)
                pl_module.head.weight.zero_()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradient = pl_module.backbone[0].weight.grad
            self.pulled.append(gradient is not None and bool(gradient.abs().sum() > 0))

    module, ewc, seen = Net(), EWC(10.0), Seen()
    for store, value in ((ewc.importance, 1.0), (ewc.anchor, 0.0)):
        store.update({name: torch.full_like(p, value) for name, p in module.named_parameters()})
    train(module, FreezingSchedule(BACKBONE, until_epoch=1), ewc, seen, epochs=2)
    assert seen.pulled == [False] * 4 + [True] * 4


def test_as_fitted_freezes_inside_the_block_only() -> None:
    module, schedule = Net(), FreezingSchedule(BACKBONE, until_epoch=None)
    module.backbone[0].requires_grad_(False)
    with schedule.as_fitted(module):
        assert {name for name, p in module.named_parameters() if p.requires_grad} == {
            "neck.weight", "neck.bias", "head.weight", "head.bias",
        }  # fmt: skip
    assert sum(p.requires_grad for p in module.parameters()) == 8
    schedule.thawed = 2
    with schedule.as_fitted(module):
        assert sum(p.requires_grad for p in module.parameters()) == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"until_epoch": 0}, r"until_epoch=0; expected an integer >= 1, or None\. HINT: "),
        ({"until_epoch": 1.5}, r"until_epoch=1\.5; expected"),
        ({"until_epoch": True}, r"until_epoch=True; expected"),
        ({"freeze": "("}, r"freeze='\(' .*; expected a regular expression\. HINT: "),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        FreezingSchedule(**arguments)


@pytest.mark.parametrize(("which", "matches"), [("nothing", "0 of 10"), (".", "10 of 10")])
def test_a_pattern_that_matches_nothing_or_everything_is_refused(which: str, matches: str) -> None:
    with pytest.raises(InputError, match=f"matches {matches} trainable parameters; expected some .* like backbone.0"):
        train(Net(), FreezingSchedule(which))


def test_sharded_strategies_and_processes_without_ddp_are_refused() -> None:
    for name, processes, said in (
        ("FSDPStrategy", 1, "strategy 'FSDPStrategy' with FreezingSchedule; expected whole parameters"),
        ("XLAStrategy", 2, "strategy 'XLAStrategy' with FreezingSchedule in 2 processes; expected strategy='ddp'"),
    ):
        trainer = SimpleNamespace(world_size=processes, strategy=type(name, (), {})(), callbacks=[])
        with pytest.raises(InputError, match=said):
            FreezingSchedule().setup(trainer, Net(), "fit")


def test_a_later_fit_starts_frozen_again() -> None:
    schedule = FreezingSchedule(BACKBONE, until_epoch=1)
    train(Net(), schedule, epochs=2)
    assert (schedule.state_dict()["version"], schedule.state_dict()["thawed"]) == (1, 2)
    watch = Watch()
    train(Net(), schedule, watch, epochs=2)
    assert watch.frozen == [True] * 4 + [False] * 4
