"""A part of a data set."""

from typing import Any

import pytest
import torch

from lightning_cl.errors import InputError
from lightning_cl.streams import Classification, TensorData, data_incremental, digits, domain_incremental, subset
from lightning_cl.streams.source import Domains


@pytest.fixture(scope="module")
def whole() -> Classification:
    return digits()


def test_classes_in_their_new_order_with_their_own_samples(whole: Classification):
    few = subset(whole, [9, "4"])
    assert few.class_names == ["9", "4"]
    for part, all_of in ((few.train, whole.train), (few.test, whole.test)):
        x, y = part.batch(torch.arange(len(part)))
        for label, name in enumerate((9, 4)):
            rows = (all_of.targets == name).nonzero().squeeze(1)
            assert torch.equal(x[y == label], all_of.batch(rows)[0])


def test_samples_per_class_depend_on_the_seed_and_not_on_the_other_classes(whole: Classification):
    def drawn(classes: list[str] | None, seed: int) -> torch.Tensor:
        few = subset(whole, classes, per_class=5, seed=seed)
        assert few.train.targets.bincount().tolist() == [5] * len(few.class_names)
        assert len(few.test) == sum(int((whole.test.targets == int(name)).sum()) for name in few.class_names)
        return few.train.batch((few.train.targets == few.class_names.index("7")).nonzero().squeeze(1))[0]

    assert torch.equal(drawn(None, 0), drawn(["2", "7"], 0))
    assert not torch.equal(drawn(None, 0), drawn(None, 1))


def test_everything_is_as_it_was(whole: Classification):
    assert torch.equal(subset(whole).train.targets, whole.train.targets)
    assert len(data_incremental(subset(whole, per_class=2), 1)[0].train) == 20


def test_domains_stay_with_their_samples():
    data = TensorData(torch.arange(8.0).view(8, 1), torch.tensor([0, 1, 2, 2, 1, 0, 1, 2]))
    domain = torch.tensor([0, 0, 1, 0, 1, 1, 0, 1])
    few = subset(Classification(data, data, domains=Domains(["a", "b"], domain, domain)), ["1", "2"])
    first, second = (task.train.batch(torch.arange(3))[0].flatten().tolist() for task in domain_incremental(few))
    assert (first, second) == ([1.0, 3.0, 6.0], [2.0, 4.0, 7.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["10"]}, "classes="),
        ({"classes": []}, "classes="),
        ({"classes": [1, "1"]}, "each once"),
        ({"per_class": 0}, "per_class=0"),
        ({"per_class": True}, "per_class=True"),
        ({"per_class": 1000}, "set per_class="),
    ],
)
def test_what_cannot_be_had_is_refused(whole: Classification, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        subset(whole, **options)
