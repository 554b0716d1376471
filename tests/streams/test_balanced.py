import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams.balanced import balanced_data
from lightning_cl.streams.selected_data import SelectedData
from lightning_cl.streams.tensor_data import TensorData


def present(**options: object) -> TensorData:
    return TensorData(torch.arange(40.0).view(20, 2), torch.arange(20) % 2 + 2, **options)  # type: ignore[arg-type]


def test_all_that_is_stored_and_as_many_of_each_class():
    stored = {"0": -torch.ones(6, 2), "1": torch.tensor([0, 1] * 3)}
    data = balanced_data(stored, present(), 3, 1)
    assert data.targets.bincount().tolist() == [3, 3, 3, 3]
    x, y = data.batch(torch.arange(len(data)), augment=True)
    assert torch.equal(y, data.targets)
    assert bool((x[:6] == -1).all())
    assert len(x[6:, 0].unique()) == 6
    assert bool(((x[6:, 0] / 2).long() % 2 + 2 == y[6:]).all())
    again = balanced_data(stored, present(), 3, 1).batch(torch.arange(12))[0]
    assert torch.equal(again, x), "a function of the seed"
    assert not torch.equal(balanced_data(stored, present(), 3, 2).batch(torch.arange(12))[0], x)
    # a class that has fewer gives what it has
    assert balanced_data(stored, present(), 50, 1).targets.bincount().tolist() == [3, 3, 10, 10]


def test_task_ids_and_augmentation_are_served_as_ever():
    stored = {"0": torch.zeros(2, 2), "1": torch.tensor([0, 1]), "2": torch.tensor([0, 0])}
    data = balanced_data(stored, present(task_id=1, augment=lambda x: x + 100), 1, 0)
    x, _, task = data.batch(torch.arange(4), augment=True)
    assert task.tolist() == [0, 0, 1, 1]
    assert bool((x[:2] == 0).all())
    assert bool((x[2:] >= 100).all())
    rows = SelectedData(present(), torch.tensor([3, 5]))
    assert (len(rows), rows.cheap, rows.targets.tolist()) == (2, True, [3, 3])


def test_other_structures_are_refused():
    with pytest.raises(
        InputError, match=r"leaves \['image', 'label'\]; expected tensors \(x, y\), \(x, y, task\), or a"
    ):
        balanced_data({"image": torch.zeros(1, 2), "label": torch.zeros(1)}, present(), 1, 0)
