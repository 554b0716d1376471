from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.callbacks.replay import Replay
from lightning_cl.errors import InputError
from tests.callbacks.replay_examples import Classifier, Numbers, as_dict, as_named_tuple, as_tuple, fit, loader

MODES = ["mixed", "separate"]


def two_tasks(module: Classifier, structure: Callable[..., Any], *callbacks: Callback, **options: Any) -> Classifier:
    torch.manual_seed(3)
    for task in range(2):
        fit(module, loader(task, structure), *callbacks, **options)
    return module


@pytest.mark.parametrize("mode", MODES)
def test_the_first_task_is_bit_identical_to_no_callback(mode: Any):
    results = []
    for callbacks in ([], [Replay(10, mode=mode)]):
        module = Classifier()
        torch.manual_seed(3)
        trainer = fit(module, loader(0), *callbacks)
        results.append((module.weights, torch.get_rng_state(), trainer.callback_metrics["loss"], module.seen))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1]), "no global random number is drawn"
    assert results[0][2:] == results[1][2:]


@pytest.mark.parametrize("structure", [as_tuple, as_dict, as_named_tuple])
@pytest.mark.parametrize("mode", MODES)
def test_the_second_task_trains_on_the_first_ones_samples(mode: Any, structure: Callable[..., Any]):
    replay = Replay(10, mode=mode)
    module = two_tasks(Classifier(structure), structure, replay)
    naive = two_tasks(Classifier(structure), structure)
    assert not torch.equal(module.weights, naive.weights)
    steps = module.seen[8:]
    current = steps[0::2] if mode == "separate" else [numbers[:6] for numbers in steps]
    memory = steps[1::2] if mode == "separate" else [numbers[6:] for numbers in steps]
    assert len(current) == len(memory) == 8
    assert all(len(numbers) == 6 and min(numbers) >= 100 for numbers in current)
    assert all(len(set(numbers)) == 6 and max(numbers) < 24 for numbers in memory)
    assert replay.replayed == 8 * 6
    assert len({tuple(numbers) for numbers in memory}) > 1
    last = module.batches[-1]
    assert type(last) is type(structure(torch.zeros(1, 4), torch.zeros(1)))
    if structure is as_dict:
        assert last["meta"]["name"] == [f"sample {i}" for i in module.seen[-1]]
        assert last["split"] == "train"


class Weight(LightningModule):
    """Loss mean(w x), whose gradient is mean(x), whatever w."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return {"loss": (self.w * batch).mean()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


def numbers(value: float, n: int = 4) -> Any:
    return torch.utils.data.DataLoader(torch.full((n,), value, dtype=torch.float64), batch_size=4)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    ("k", "current", "memory"), [(1, 1.0, 0.0), (2, 1 / 2, 1 / 2), (3, 1 / 3, 2 / 3), (5, 1 / 5, 4 / 5)]
)
def test_van_de_vens_weights(k: int, current: float, memory: float, accumulate: int):
    replay = Replay(4, mode="separate")
    replay.memory.add(torch.full((4,), 3.0, dtype=torch.float64))
    replay.n_tasks = k - 1
    assert replay.loss_weights == (1 / k, 1 - 1 / k)
    module = Weight()
    # every micro-batch is divided by the number of them, both losses alike: one step of the mean gradient
    fit(module, numbers(6.0, 4 * accumulate), replay, max_epochs=1, accumulate_grad_batches=accumulate)
    assert -module.w.item() == pytest.approx(current * 6 + memory * 3, abs=1e-12)


def test_the_callback_counts_the_tasks_for_its_weights():
    replay, module = Replay(4, mode="separate"), Weight()
    updates = []
    for value in (1.0, 5.0, 7.0):
        before = module.w.item()
        fit(module, numbers(value), replay, max_epochs=1)
        updates.append(before - module.w.item())
    assert updates[:2] == pytest.approx([1.0, 0.5 * 5 + 0.5 * 1], abs=1e-12)
    assert replay.n_tasks == 3
    # at the third the memory is a mixture of ones and fives
    assert 7 / 3 + 2 / 3 * 1 <= updates[2] <= 7 / 3 + 2 / 3 * 5


def test_own_weights_and_the_gradient_against_autograd():
    replay = Replay(10, mode="separate", weights=(0.3, 2.0), batch_size=4)
    module = Classifier()
    module.net[2] = nn.Identity()
    fit(module, loader(0), replay, max_epochs=1)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    gradients: list[Tensor] = []

    class Keep(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            gradients.append(torch.cat([p.grad.flatten() for p in pl_module.parameters()]))

    fit(module, loader(1), replay, Keep(), max_steps=1)
    module.load_state_dict(before)
    expected = 0
    for weight, (x, y) in zip((0.3, 2.0), module.batches[-2:], strict=True):
        loss = nn.functional.cross_entropy(module.net(x[:, 1:]), y)
        expected = expected + weight * torch.cat(
            [g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]
        )
    torch.testing.assert_close(gradients[0], expected)
    assert len(module.batches[-1][1]) == 4


@pytest.mark.parametrize("where", ["datamodule", "module"])
@pytest.mark.parametrize("mode", MODES)
def test_the_users_own_transfer_hooks_see_the_memory_too_and_stay(mode: Any, where: str):
    def hook(self: Any, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * torch.tensor([1.0, 0, 0, 0]) + torch.tensor([0.0, 7, 7, 7]), batch[1]

    class Hooked(Numbers):
        pass

    class HookedModule(Classifier):
        pass

    (Hooked if where == "datamodule" else HookedModule).on_after_batch_transfer = hook  # type: ignore[method-assign]
    module, replay = HookedModule(), Replay(10, mode=mode)
    for task in range(2):
        data = Hooked(task)
        fit(module, data, replay)
        assert "on_after_batch_transfer" not in {**data.__dict__, **module.__dict__}
    assert all(bool((x[:, 1:] == 7).all()) for x, _ in module.batches)
    assert min(module.seen[-1]) < 24
    assert not bool((replay.memory.at(slice(0, 1))["0"] == 7).any()), "stored as they come from the loader"


def test_nothing_is_left_behind_after_an_exception():
    class Fails(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            raise RuntimeError("stop")

    module, replay = Classifier(), Replay(10, mode="separate")
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, loader(0), replay, Fails())
    assert not {"training_step", "on_after_batch_transfer"} & module.__dict__.keys()
    assert len(replay.memory) == 0
    fit(module, loader(0), replay)
    assert len(replay.memory) == 10


def test_validation_and_other_callbacks_passes_are_not_mixed():
    sizes: list[int] = []

    class Passes(Callback):
        def transfer(self, trainer: Any, module: Any) -> None:
            batch = next(iter(loader(1)))
            sizes.append(len(trainer.strategy.batch_to_device(batch)[1]))
            sizes.append(len(_compat.move_batch(trainer, module, batch)[1]))

        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            self.transfer(trainer, pl_module)

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            self.transfer(trainer, pl_module)

    class Validated(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            sizes.append(len(batch[1]))

    module, replay = Validated(), Replay(10)
    fit(module, loader(0), replay)
    data = Numbers(1)
    data.val_dataloader = lambda: loader(1)  # type: ignore[method-assign]
    fit(module, data, Passes(), replay)
    assert set(sizes) == {6}
    assert len(sizes) > 20
    assert len(module.seen[-1]) == 12


def test_consolidation_offers_each_training_sample_once():
    replay = Replay(100)
    fit(Classifier(), loader(0, drop_last=True), replay, max_epochs=3)
    assert replay.memory.at(slice(0, 100))["0"][:, 0].tolist() == list(range(24))
    assert replay.memory.n_seen == 24
    assert replay.nbytes == 24 * (4 * 4 + 8 + 8), "features, label, and the label for the policy"


def test_class_balanced_keeps_equal_shares():
    replay = Replay(8, policy="class_balanced")
    two_tasks(Classifier(as_dict), as_dict, replay)
    assert sorted(replay.memory.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_step_fill_stores_the_batches_as_given_in_the_first_epoch_only():
    class Rewrites(Callback):
        """What Lightning allows a callback to do, and what makes a stored batch wrong when it is done twice."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            batch[0][:, 1:] = 0

    replay, module = Replay(100, fill="step", batch_size=3), Classifier()
    fit(module, loader(0), Rewrites(), replay, max_epochs=2)
    stored = replay.memory.at(slice(0, 100))["0"]
    assert replay.memory.n_seen == 24
    assert sorted(stored[:, 0].tolist()) == list(range(24))
    assert bool((stored[:, 1:] != 0).all())
    assert [len(numbers) for numbers in module.seen] == [6] + [9] * 7, "replayed from the second step on"


def test_step_fill_with_loaders_that_cannot_be_made_again():
    class Named(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch["a"], batch_idx)

    replay = Replay(100, fill="step")
    fit(Named(), {"a": loader(0)}, replay)
    assert replay.memory.n_seen == 24
    assert replay.n_tasks == 1


def test_manual_consolidation_and_a_state_file(tmp_path: Path):
    path = tmp_path / "replay.ckpt"
    module, replay = Classifier(), Replay(10, consolidate="manual", state_path=path)
    trainer = fit(module, loader(0), replay)
    assert len(replay.memory) == 0
    replay.consolidate(trainer, module)
    replay.consolidate(trainer, module)
    assert (replay.memory.n_seen, replay.n_tasks) == (24, 1)
    later = Replay(10, state_path=path)
    fit(module, loader(1), later)
    assert min(module.seen[-1]) < 24
    assert later.n_tasks == 2


def test_manual_optimization_works_with_mixed_batches():
    class Manual(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module = two_tasks(Manual(), as_tuple, Replay(10))
    assert len(module.seen[-1]) == 12
    with pytest.raises(InputError, match=r"Replay on Manual with automatic_optimization=False.*HINT: .*mode='mixed'"):
        two_tasks(Manual(), as_tuple, Replay(10, mode="separate"))


def test_processes_draw_alike_and_take_their_share():
    drawn = []
    for rank in range(2):
        replay = Replay(20, batch_size=5, seed=1)
        replay.memory.add((torch.arange(20.0), torch.arange(20)))
        replay._trainer = SimpleNamespace(global_rank=rank, world_size=2, current_epoch=0)
        drawn.append(replay.mix((torch.zeros(3), torch.zeros(3, dtype=torch.long)))[1][3:].tolist())
        states = replay.memory.state_dict()["draws"]
    assert len(drawn[0]) == len(drawn[1]) == 5
    assert not set(drawn[0]) & set(drawn[1])
    assert torch.equal(states, replay.memory.state_dict()["draws"])


def test_the_seed_and_the_name_decide_what_is_drawn():
    def run(**options: Any) -> Tensor:
        return two_tasks(Classifier(), as_tuple, Replay(10, **options)).weights

    assert torch.equal(run(), run())
    assert not torch.equal(run(), run(seed=1))
    assert not torch.equal(run(), run(name="other"))


def test_a_hook_that_is_replaced_after_setup_is_reported():
    class Replaces(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.on_after_batch_transfer = lambda batch, dataloader_idx: batch

    with pytest.raises(InputError, match=r"did not pass Replay at Classifier.on_after_batch.*HINT: .*ReplayData"):
        fit(Classifier(), loader(0), Replay(10), Replaces())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": -1}, r"memory_size=-1; expected an integer >= 0.*. HINT"),
        ({"policy": "fifo"}, r"policy='fifo'; expected one of reservoir, class_balanced, .*HINT"),
        ({"mode": "both"}, r"mode='both'; expected 'mixed' or 'separate'. HINT"),
        ({"fill": "never"}, r"fill='never'; expected 'consolidate' or 'step'. HINT"),
        ({"batch_size": 0}, r"batch_size=0; expected an integer >= 1, or None. HINT"),
        ({"mode": "separate", "weights": (1,)}, r"weights=\(1,\); expected 'tasks' or two finite numbers.*HINT"),
        ({"mode": "separate", "weights": 0.5}, r"weights=0.5; expected 'tasks' or two finite numbers.*HINT"),
        ({"weights": (0.5, 0.5)}, r"weights=\(0.5, 0.5\) with mode='mixed'; expected no weights. HINT: set mode"),
        ({"consolidate": "never"}, r"consolidate='never'; expected 'auto' or 'manual'. HINT"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        Replay(**({"memory_size": 10} | options))


def test_batches_that_cannot_be_replayed_are_refused_on_the_first_one():
    with pytest.raises(InputError, match=r"leaf 'b' of length 4 beside leaf 'a/0' of length 6.*HINT"):
        fit(Classifier(), {"a": loader(0), "b": numbers(1.0, 5)}, Replay(10, fill="step"))

    class Unlabelled(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net(batch[:, 1:]).mean()

    with pytest.raises(InputError, match=r"leaves \[''\], none of which is a label for.*HINT: give label_fn"):
        fit(Unlabelled(), loader(0, lambda x, y: x), Replay(10, policy="class_balanced"))
    replay = Replay(10, policy="class_balanced", label_fn=lambda batch: batch[:, 0].long() // 12)
    fit(Unlabelled(), loader(0, lambda x, y: x), replay)
    assert sorted(replay.memory.labels.tolist()) == [0] * 5 + [1] * 5


def test_a_batch_of_another_kind_than_the_memory():
    replay, module = Replay(10), Classifier()
    fit(module, loader(0), replay)
    with pytest.raises(InputError, match=r"leaves \['image', .*\] for a memory of \['0', '1'\]; expected the.*HINT"):
        fit(Classifier(as_dict), loader(1, as_dict), replay)
