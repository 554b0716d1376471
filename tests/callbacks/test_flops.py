"""Counts against numbers worked out by hand."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from lightning_cl import EWC, FreezingSchedule, Replay, run_sequence
from lightning_cl.callbacks._flops import CountedLoader, FlopCounter
from tests.callbacks.freezing_examples import Net, train
from tests.finetuning.examples import FEW_EPOCHS, blobs, module, plain_loader, stream, trainer

IN, HIDDEN, EPOCHS, PER_TASK = 8, 16, 2, 40  # of the examples' MLP and stream


def forward(classes: int) -> int:
    """FLOPs of one sample: 2 * in * out in each Linear layer."""
    return 2 * (IN * HIDDEN + HIDDEN * classes)


def step(classes: int) -> int:
    """Forward, gradients of both weights, and of the second layer's input; the first layer's needs none."""
    return 2 * forward(classes) + 2 * HIDDEN * classes


def learn(*callbacks: Any, **options: Any) -> dict[str, Any]:
    return run_sequence(
        module(), stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False, batch_size=10, **options
    )["compute"]


def test_training_by_hand() -> None:
    compute = learn()
    expected = [PER_TASK * EPOCHS * step(classes) for classes in (2, 4, 6)]
    assert [compute["stages"][str(t)]["fit"] for t in range(3)] == expected
    assert [compute["stages"][str(t)]["consolidate"] for t in range(3)] == [0, 0, 0]
    assert compute["total"] == sum(expected)
    # every task seen so far is evaluated, with the rows there are
    assert compute["evaluation"] == sum(PER_TASK * (t + 1) * forward(2 * (t + 1)) for t in range(3))


@pytest.mark.parametrize("mode", ["mixed", "separate"])
def test_replay_doubles_the_work(mode: Any) -> None:
    stages = learn(Replay(50, mode=mode))["stages"]
    once = [PER_TASK * EPOCHS * step(classes) for classes in (2, 4, 6)]
    assert [stages[str(t)]["fit"] for t in range(3)] == [once[0], 2 * once[1], 2 * once[2]]


def test_an_uneven_last_batch_counts_by_its_samples() -> None:
    compute = run_sequence(module(), stream(), trainer=FEW_EPOCHS, progress_bar=False, batch_size=17)["compute"]
    assert compute["stages"]["0"]["fit"] == PER_TASK * EPOCHS * step(2)


def test_a_frozen_part_has_no_backward() -> None:
    compute = learn(FreezingSchedule(until_epoch=1), limit_tasks=1)
    frozen = forward(2) + 2 * HIDDEN * 2  # and the gradient of the head's weight
    assert compute["stages"]["0"]["fit"] == PER_TASK * (frozen + step(2))


def test_importance_is_counted() -> None:
    compute = learn(EWC(10.0, labels="empirical"), limit_tasks=1)
    assert compute["stages"]["0"]["consolidate"] >= PER_TASK * 2 * forward(2)


def test_resumed_counts_the_same(tmp_path: Any) -> None:
    whole, saver = FlopCounter(), ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    train(Net(), FreezingSchedule(["backbone"], until_epoch=1), whole, saver, enable_checkpointing=True)
    assert len(whole.measured) == 2  # frozen steps and thawed ones
    for step_ in (1, 4, 6):
        again = FlopCounter()
        train(Net(), FreezingSchedule(["backbone"], until_epoch=1), again, resume=str(tmp_path / f"step={step_}.ckpt"))
        assert again.total == whole.total > 0


def test_counted_loader_scales_the_first_batch() -> None:
    weight = torch.ones(5, 3)
    with CountedLoader([torch.ones(4, 5), torch.ones(4, 5), torch.ones(2, 5)]) as loader:
        assert loader.flops == 0
        for batch in loader:
            batch @ weight
        assert len(loader) == 3
        assert loader.flops == 10 * 2 * 5 * 3
        next(iter(loader))  # a pass that is given up
    assert _get_current_dispatch_mode_stack() == []
    assert loader.flops == 14 * 2 * 5 * 3


class Breaks(Callback):
    def __init__(self, hook: str, error: BaseException) -> None:
        def raise_(*args: Any, **kwargs: Any) -> None:
            raise error

        setattr(self, hook, raise_)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("hook", ["on_before_backward", "on_before_optimizer_step", "on_train_batch_end"])
def test_no_mode_is_left_behind_by_a_broken_fit(hook: str, error: BaseException) -> None:
    with pytest.raises((type(error), SystemExit)):
        trainer(callbacks=[FlopCounter(), Breaks(hook, error)]).fit(
            module(class_names=[f"c{i}" for i in range(6)]), plain_loader()
        )
    assert _get_current_dispatch_mode_stack() == []


def test_no_mode_is_left_behind_by_a_broken_consolidation_or_evaluation() -> None:
    def give_up(*args: Any, **kwargs: Any) -> Any:
        raise ArithmeticError("given up")

    kept = []  # the traceback keeps the loader's frame alive
    for options, callbacks in (({}, [EWC(1.0, logits_fn=give_up)]), ({"metric": give_up}, [])):
        with pytest.raises(ArithmeticError) as caught:
            run_sequence(module(**options), stream(), callbacks, trainer=FEW_EPOCHS, progress_bar=False)
        kept.append(caught)
        assert _get_current_dispatch_mode_stack() == []


def test_a_skipped_batch_is_not_taken_for_a_measurement() -> None:
    class Skips(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            skip = iter([-1])
            pl_module.on_train_batch_start = lambda *args: next(skip, None)

    counter = FlopCounter()
    model = module(class_names=[f"c{i}" for i in range(6)])
    trainer(callbacks=[counter, Skips()]).fit(model, plain_loader())
    assert _get_current_dispatch_mode_stack() == []
    # a hook that returns -1 ends its epoch: only the second one is trained
    assert counter.total == len(blobs().train) * step(6)
