"""Streams whose tasks overlap: which samples go where, and in which order they are served."""

from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import TaskDataModule, blurry, build_stream, class_incremental, gradual, online
from tests.streams.helpers import classes


def served(task: Any, epoch: int = 0) -> torch.Tensor:
    """Positions of the samples in the data set, in the order in which training sees them."""
    loader = TaskDataModule(task, batch_size=7).train_dataloader()
    loader.set_epoch(epoch)
    return torch.cat([x[:, 0, 0, 0] for x, _ in loader]).long()


def test_blurry_by_hand():
    # three tasks of two classes, 60 samples each: 54 stay, 3 go to each of the others
    stream = blurry(classes(6, 30), 3, blur=0.1)
    rows = [served(task).tolist() for task in stream]
    assert sorted(row for part in rows for row in part) == list(range(180))
    counts = torch.stack([task.train.targets.bincount(minlength=6).view(3, 2).sum(1) for task in stream])
    assert counts.tolist() == [[54, 3, 3], [3, 54, 3], [3, 3, 54]]
    for number, task in enumerate(stream):
        assert task.classes == tuple(stream.class_names)
        assert task.test.targets.unique().tolist() == [2 * number, 2 * number + 1]
        assert len(task.test) == 60
        assert task.train.targets.bincount(minlength=6)[2 * number :][:2].tolist() == [27, 27]
    assert stream.scenario == "blurry"
    assert not stream.has_boundaries
    assert blurry(classes(6, 30), 3, blur=0.1, boundaries=True).has_boundaries


def test_labels_are_those_of_a_class_incremental_stream_and_without_blur_so_are_the_samples():
    plain = class_incremental(classes(6, 12), 3, class_order_seed=4)
    stream = blurry(classes(6, 12), 3, blur=0.0, class_order_seed=4)
    assert stream.class_names == plain.class_names
    for one, two in zip(stream, plain, strict=True):
        assert torch.equal(one.train.targets, two.train.targets)
        assert torch.equal(served(one), served(two))
        assert torch.equal(one.test.targets, two.test.targets)


def test_the_spread_depends_on_the_seed_alone():
    first, again, other = (blurry(classes(6, 12), 3, blur=0.3, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(served(a), served(b)) for a, b in zip(first, again, strict=True))
    assert any(set(served(a).tolist()) != set(served(b).tolist()) for a, b in zip(first, other, strict=True))


def test_gradual_serves_a_drift_in_its_order():
    stream = gradual(classes(10, 100), 5, width=0.5)
    assert not stream.has_boundaries
    rows = torch.cat([served(task) for task in stream])
    assert sorted(rows.tolist()) == list(range(1000))
    assert torch.equal(served(stream[1], epoch=3), served(stream[1]))
    labels = torch.cat([task.train.targets for task in stream])
    moments = torch.arange(1000, dtype=torch.float64) / 1000
    for label in range(10):
        own = moments[labels == label]
        # by construction around (label + 1/2) / 10 with a standard deviation of a tenth; cut off at both ends
        assert abs(float(own.mean()) - (label + 0.5) / 10) < (0.05 if label in (0, 1, 8, 9) else 0.02)
        assert float(own.std()) == pytest.approx(0.1, abs=0.02) or label in (0, 1, 8, 9)
    # the proportion of a class rises and falls; nothing jumps where a stretch ends
    shares = torch.stack([(labels[i : i + 100] == 4).double().mean() for i in range(0, 1000, 50)])
    assert 3 <= int(shares.argmax()) * 50 // 100 <= 5
    assert float(shares.diff().abs().max()) < 0.2
    assert [task.test.targets.unique().tolist() for task in stream] == [[2 * t, 2 * t + 1] for t in range(5)]


def test_two_processes_share_a_drift_without_changing_its_order(monkeypatch: pytest.MonkeyPatch):
    stream = gradual(classes(4, 9), 2)
    whole, shares = served(stream[0]), []
    for rank in range(2):
        monkeypatch.setattr("lightning_cl.streams.loader._world", lambda rank=rank: (rank, 2))
        shares.append(served(stream[0]))
    assert torch.equal(torch.stack(shares, 1).flatten(), whole)


def test_gradual_without_width_has_one_class_after_the_other():
    stream = gradual(classes(6, 10), 3, width=0.0, class_order_seed=2)
    labels = torch.cat([task.train.targets for task in stream])
    assert labels.tolist() == sorted(labels.tolist())
    assert [len(task.train) for task in stream] == [20, 20, 20]


def test_some_classes_and_validation_data():
    stream = gradual(classes(10, 20), classes_per_task=[2, 3], validation_fraction=0.25, width=0.3)
    assert len(stream.class_names) == 5
    assert [len(task.train) for task in stream] == [38, 38]
    assert [len(task.validation) for task in stream] == [12, 12]
    for task in stream:
        assert not set(served(task).tolist()) & set(task.validation.batch(torch.arange(12))[0][:, 0, 0, 0].tolist())
    # what is held out is taken out of the order, and leaves the rest in it
    full = gradual(classes(10, 20), classes_per_task=[2, 3], width=0.3)
    assert [i for i in served(full[0]).tolist() if i in set(served(stream[0]).tolist())] == served(stream[0]).tolist()


def test_the_config_builds_both_and_online_keeps_what_they_say():
    dataset = classes(6, 12)
    assert build_stream(dataset, "blurry", n_tasks=3, blur=0.2, boundaries=True).has_boundaries
    assert not build_stream(dataset, "gradual", n_tasks=3, width=1.0).has_boundaries
    stream = build_stream(dataset, "online", n_tasks=3, online_over="gradual")
    assert (stream.scenario, stream.has_boundaries) == ("online", False)
    assert online(dataset, 3).has_boundaries


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"scenario": "blurry", "blur": 1.0},
            r"blur=1.0; expected a fraction inside \[0, 1\).*HINT: set stream.blur=0.1",
        ),
        ({"scenario": "blurry", "blur": 0.1, "n_tasks": 1}, r"blur=0.1 with one task; expected n_tasks >= 2"),
        ({"scenario": "gradual", "width": -1.0}, r"width=-1.0; expected a finite number >= 0"),
        ({"scenario": "gradual", "blur": 0.1}, r"blur=0.1 in gradual.*HINT: set stream.blur=null"),
        ({"scenario": "class_incremental", "width": 1.0}, r"width=1.0 in class_incremental"),
        ({"scenario": "class_incremental", "boundaries": False}, r"boundaries=False in class_incremental"),
        ({"scenario": "blurry", "transform": []}, r"transform=\[\] in blurry"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        build_stream(classes(4, 6), **{"n_tasks": 2, **arguments})
