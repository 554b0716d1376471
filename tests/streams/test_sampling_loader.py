"""Draws of a loader: their distribution, their order, and going on in the middle."""

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.functional.sampling import draw_class_balanced
from lightning_cl.streams import TaskDataModule, TaskLoader, TensorData
from tests.streams.helpers import equal


def unbalanced() -> TensorData:
    """100 samples of class 5, 20 of class 2, 5 of class 9; each holds its own index."""
    y = torch.tensor([5] * 100 + [2] * 20 + [9] * 5)
    return TensorData(torch.arange(len(y)).float().unsqueeze(1), y)


def loader(**options) -> TaskLoader:
    return TaskLoader(unbalanced(), 50, shuffle=True, **{"epoch_size": 20_000, **options})


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_distribution(sampling: str):
    x, y = (torch.cat(leaves) for leaves in zip(*loader(sampling=sampling, seed=3), strict=True))
    data = unbalanced()
    assert len(y) == 20_000
    assert torch.equal(y, data.targets[x.long().flatten()])
    counts = x.long().flatten().bincount(minlength=125).float()
    if sampling == "uniform":
        expected = torch.full((125,), 20_000 / 125)
    else:
        expected = torch.tensor([20_000 / 3 / 100] * 100 + [20_000 / 3 / 20] * 20 + [20_000 / 3 / 5] * 5)
    # 99.9 % of a chi-square of 124 degrees of freedom is 178
    assert chi_square(counts, expected) < 178
    # draws are independent: a sample does not tell the next one's class
    first, second = y[:-1] == 5, y[1:] == 5
    assert abs(float((first & second).float().mean() - first.float().mean() * second.float().mean())) < 0.01


def test_draw_class_balanced_serves_each_class_its_own():
    targets = torch.tensor([4, 0, 4, 4, 7])
    picks = draw_class_balanced(targets, 3000, torch.Generator().manual_seed(0))
    counts = targets[picks].bincount(minlength=8)[[0, 4, 7]]
    assert (counts - 1000).abs().max() < 120
    assert set(picks.tolist()) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced"])
def test_order_is_a_function_of_seed_task_and_epoch_and_goes_on_in_the_middle(sampling: str):
    options = {"sampling": sampling, "epoch_size": 230}
    whole = list(loader(**options))
    assert len(whole) == len(loader(**options)) == 5
    assert equal(whole, list(loader(**options)))
    for other in ({"seed": 1}, {"task_id": 1}):
        assert not equal(whole, list(loader(**options, **other)))
    next_epoch = loader(**options)
    next_epoch.set_epoch(1)
    assert not equal(whole, list(next_epoch))
    stopped, again = loader(**options), loader(**options)
    batches = iter(stopped)
    begun = [next(batches), next(batches)]
    again.load_state_dict(stopped.state_dict())
    assert equal(begun + list(again), whole)


def test_sizes():
    assert [len(x) for x, _ in loader(sampling="uniform", epoch_size=120)] == [50, 50, 20]
    assert [len(x) for x, _ in loader(sampling="uniform", epoch_size=120, drop_last=True)] == [50, 50]
    assert sum(len(x) for x, _ in loader(sampling="uniform", epoch_size=None)) == 125
    assert len(loader(sampling="uniform").plain()) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampling": "often"}, r"sampling='often' with shuffle=True, in_order=False; expected 'once'"),
        (
            {"sampling": "uniform", "shuffle": False},
            r"sampling='uniform' with shuffle=False, in_order=False; expected 'once'",
        ),
        ({"sampling": "uniform", "epoch_size": 0}, r"epoch_size=0 with sampling='uniform'; expected an integer >= 1"),
        ({"sampling": "once", "epoch_size": 5}, r"epoch_size=5 with sampling='once'; expected an integer >= 1"),
        ({"sampling": "uniform", "epoch_size": 5, "drop_last": True}, r"on 5 samples; expected at least one full"),
    ],
)
def test_refuses(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        TaskLoader(unbalanced(), 50, **{"shuffle": True, **options})


def test_the_datamodule_hands_it_on():
    from lightning_cl.streams import class_incremental
    from tests.streams.helpers import classes

    task = class_incremental(classes(), 5)[0]
    train = TaskDataModule(task, batch_size=4, sampling="class_balanced", epoch_size=10).train_dataloader()
    assert (train.sampling, train.epoch_size, len(train)) == ("class_balanced", 10, 3)
