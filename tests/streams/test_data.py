import random

import numpy as np
import pytest
import torch
from torchvision.transforms import Normalize
from torchvision.transforms.functional import to_tensor

from lightning_cl.errors import InputError
from lightning_cl.streams import ConcatData, Data, ItemData, TensorData
from lightning_cl.streams.concat_data import concatenate_data
from tests.streams.helpers import JitterEach, NoisyItems, equal, numbered


def test_uint8_is_served_as_to_tensor_serves_it():
    x = torch.randint(0, 256, (7, 3, 5, 5), dtype=torch.uint8)
    data = TensorData(x, torch.arange(7), normalize=([0.1, 0.2, 0.3], [2.0, 3.0, 4.0]))
    served, y = data.batch(torch.tensor([6, 2, 2]))
    each = [to_tensor(image.permute(1, 2, 0).numpy()) for image in x]
    oracle = Normalize([0.1, 0.2, 0.3], [2.0, 3.0, 4.0])
    assert torch.allclose(served, torch.stack([oracle(each[i]) for i in (6, 2, 2)]))
    assert torch.equal(TensorData(x, torch.arange(7)).batch(torch.tensor([6]))[0][0], each[6])
    assert y.tolist() == [6, 2, 2]
    assert isinstance(data, Data)


def test_order_of_augmentation_transform_and_normalisation():
    data = numbered(
        4, augment=lambda x: x + 1, task_transform=lambda x, ids: x * 10 + ids.unsqueeze(1), normalize=(1.0, 2.0)
    )
    plain, augmented = (data.batch(torch.tensor([3]), augment=flag)[0].item() for flag in (False, True))
    assert plain == (3 * 10 + 3 - 1) / 2
    assert augmented == ((3 + 1) * 10 + 3 - 1) / 2


def test_a_view_shares_the_tensor_and_keeps_the_rest():
    data = numbered(6, first_id=100, normalize=(0.0, 2.0), task_id=5)
    view = data.view(torch.tensor([4, 1])).view(torch.tensor([1, 0]), torch.tensor([7, 8]))
    assert view.x is data.x
    x, y, task = view.batch(torch.tensor([0, 1]))
    assert (x.flatten().tolist(), y.tolist(), task.tolist()) == ([0.5, 2.0], [7, 8], [5, 5])
    assert view.first_id == 100


def test_padding_adds_zeros_around_images():
    data = TensorData(torch.ones(3, 1, 2, 2, dtype=torch.uint8) * 255, torch.arange(3), rows=torch.arange(3))
    x, y = data.padded(2).batch(torch.tensor([1]))
    assert x.shape == (1, 1, 6, 6)
    assert x.sum() == 4
    assert x[0, 0, 2:4, 2:4].eq(1).all()
    assert y.item() == 1


def test_augmentation_depends_on_seed_epoch_and_index_only():
    data = numbered(8, augment=JitterEach(), seed=1)
    every = data.batch(torch.arange(8), epoch=2, augment=True)[0]
    alone = torch.cat([data.batch(torch.tensor([i]), epoch=2, augment=True)[0] for i in reversed(range(8))]).flip(0)
    assert torch.equal(every, alone)
    assert not torch.equal(every, data.batch(torch.arange(8), epoch=3, augment=True)[0])
    other_seed = numbered(8, augment=JitterEach(), seed=2)
    assert not torch.equal(every, other_seed.batch(torch.arange(8), epoch=2, augment=True)[0])
    jitter = every.flatten() - torch.arange(8)
    assert len(jitter.unique()) == 8


@pytest.mark.parametrize("data", [numbered(8, augment=JitterEach()), ItemData(NoisyItems(), None, torch.zeros(23))])
def test_the_global_generators_are_left_as_found(data):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    data.batch(torch.arange(5), epoch=1, augment=True)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]
    assert all(np.array_equal(p, q) for p, q in zip(before[2], after[2], strict=True))


def test_items_are_a_function_of_seed_epoch_and_index():
    dataset = NoisyItems()
    data = ItemData(dataset, torch.arange(20), torch.tensor(dataset.targets[:20]), seed=3)
    assert isinstance(data, Data)
    assert not data.cheap
    one, labels = data.batch(torch.tensor([4, 9]), epoch=1, augment=True)
    assert torch.equal(one[1:], data.batch(torch.tensor([9]), epoch=1, augment=True)[0])
    assert not torch.equal(one, data.batch(torch.tensor([4, 9]), epoch=2, augment=True)[0])
    assert labels.tolist() == [1, 0]
    assert one.dtype == torch.float32
    assert len((one - one.floor()).flatten().unique()) == 6
    # a plain pass is the same in every epoch
    assert equal([data.batch(torch.tensor([4]), epoch=1)], [data.batch(torch.tensor([4]), epoch=7)])


def test_items_serve_as_tensors_do():
    x = torch.randint(0, 256, (6, 1, 4, 4), dtype=torch.uint8)
    y = torch.arange(6)
    common = {"normalize": (0.5, 2.0), "task_transform": lambda x, ids: x + ids.view(-1, 1, 1, 1), "task_id": 2}
    items = ItemData(list(zip(x, y.tolist(), strict=True)), None, y, first_id=4, **common).padded(1)
    tensors = TensorData(x, y, first_id=4, **common).padded(1)
    indices = torch.tensor([5, 0])
    assert equal([items.batch(indices)], [tensors.batch(indices)])
    some = torch.tensor([3, 1])
    one = torch.tensor([1])
    assert equal([items.view(some, some).batch(one)], [tensors.view(some, some).batch(one)])


def test_concatenation_serves_every_part_its_own_indices():
    parts = [numbered(3, augment=JitterEach(), seed=1), numbered(4, augment=JitterEach(), seed=2)]
    both = concatenate_data(parts)
    assert isinstance(both, ConcatData)
    assert both.cheap
    assert len(both) == 7
    indices = torch.tensor([5, 0, 6, 2])
    assert both.batch(indices)[0].flatten().tolist() == [2, 0, 3, 2]
    assert both.batch(indices)[1].tolist() == [2, 0, 0, 2]
    assert torch.equal(both.targets, torch.cat([part.targets for part in parts]))
    augmented = both.batch(indices, epoch=3, augment=True)[0]
    assert torch.equal(augmented[1], parts[0].batch(torch.tensor([0]), epoch=3, augment=True)[0][0])
    assert torch.equal(augmented[0], parts[1].batch(torch.tensor([2]), epoch=3, augment=True)[0][0])
    assert not ConcatData([parts[0], ItemData(NoisyItems(), None, torch.zeros(23))]).cheap


def test_views_of_one_tensor_become_one_view():
    whole = numbered(9)
    a, b = (whole.view(torch.tensor(rows), task_id=task) for rows, task in (([1, 3], 0), ([8, 2, 4], 1)))
    both = concatenate_data([a, b])
    assert isinstance(both, TensorData)
    assert both.x is whole.x
    x, y, task = both.batch(torch.arange(5))
    assert x.flatten().tolist() == [1, 3, 8, 2, 4]
    assert y.tolist() == [1, 0, 2, 2, 1]
    assert task.tolist() == [0, 0, 1, 1, 1]


@pytest.mark.parametrize("make", [lambda y: TensorData(torch.zeros(3, 1), y), lambda y: ItemData([0, 1, 2], None, y)])
def test_one_label_per_input(make):
    with pytest.raises(InputError, match=r"^3 inputs and 2 labels; expected one label per input\. HINT: check"):
        make(torch.zeros(2))
