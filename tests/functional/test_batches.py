import dataclasses
from collections import OrderedDict, UserDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lightning_cl.functional.batches import batch_size, concatenate, leaves, rebuild, select


class Pair(NamedTuple):
    image: Tensor
    target: Tensor
    mask: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    image: Tensor
    name: list[str]
    scale: float = 2.0


class Plain:
    def __init__(self, image: Tensor, target: Tensor) -> None:
        self.image, self.target, self.source = image, target, "train"


class Encoding(UserDict):
    """Like a Hugging Face BatchEncoding: a UserDict whose items are also attributes, with more state beside them."""

    def __init__(self, data: dict[str, Any], encodings: str | None = None) -> None:
        super().__init__(data)
        self.encodings = encodings


x, y = torch.arange(12.0).view(4, 3), torch.tensor([5, 6, 7, 8])
names = ["a", "b", "c", "d"]
BATCHES = {
    "tensor": x,
    "tuple": (x, y),
    "collated list": [x, y],
    "dict": {"image": x, "meta": {"name": names, "y": y}, "epoch": 3, "weight": None},
    "ordered": OrderedDict(image=x, y=y),
    "namedtuple": Pair(x, y),
    "dataclass": Record(x, names),
    "object": Plain(x, y),
    "encoding": Encoding({"input_ids": x, "labels": y}, "kept"),
    "nested": ((x, {"y": y}), [names, torch.tensor(1.5)]),
    "dict per sample": (x, [{"box": torch.zeros(i, 4)} for i in range(4)]),
}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list) and a and isinstance(a[0], dict):
        return all(same(p[k], q[k]) for p, q in zip(a, b, strict=True) for k in p)
    return bool(a == b)


@pytest.mark.parametrize("name", BATCHES)
def test_select_takes_the_same_samples_from_every_leaf_and_keeps_the_type(name: str):
    batch = BATCHES[name]
    before = leaves(batch)
    picked = select(batch, torch.tensor([3, 1]))
    assert type(picked) is type(batch)
    assert batch_size(picked) == 2
    after = leaves(picked)
    assert after.keys() == before.keys()
    for path, leaf in after.items():
        assert same(leaf, before[path][[3, 1]] if isinstance(leaf, Tensor) else [before[path][3], before[path][1]])
    assert batch_size(batch) == 4, "the batch itself is left alone"


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_cut_in_two_and_put_together_again_is_the_batch(name: str):
    batch = BATCHES[name]
    whole = concatenate(select(batch, slice(0, 1)), select(batch, torch.tensor([False, True, True, True])))
    assert type(whole) is type(batch)
    expected = leaves(batch)
    for path, leaf in leaves(whole).items():
        assert same(leaf, expected[path])


def test_paths_and_what_is_kept():
    assert list(leaves((x, y))) == ["0", "1"]
    assert list(leaves(BATCHES["dict"])) == ["image", "meta/name", "meta/y"]
    assert list(leaves(x)) == [""]
    picked = select(BATCHES["dict"], slice(0, 2))
    assert picked["epoch"] == 3
    assert picked["weight"] is None
    assert select(Pair(x, y), slice(0, 2)).mask is None
    assert select(BATCHES["dataclass"], slice(0, 2)).scale == 2.0
    assert select(BATCHES["object"], slice(0, 2)).source == "train"
    assert select(BATCHES["encoding"], slice(0, 2)).encodings == "kept"


def test_rebuild_puts_leaves_into_the_structure():
    new = rebuild({"a": x, "b": (y, 1)}, {"a": x + 1, "b/0": y[:2]})
    assert torch.equal(new["a"], x + 1)
    assert torch.equal(new["b"][0], y[:2])
    assert new["b"][1] == 1


def test_token_batches_are_padded_to_equal_length():
    short = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2, 3, dtype=torch.long)}
    long = {"input_ids": torch.full((1, 5), 7), "labels": torch.full((1, 5), 7)}
    for a, b, row in ((short, long, slice(0, 2)), (long, short, slice(1, 3))):
        both = concatenate(a, b)
        assert both["input_ids"].shape == (3, 5)
        assert both["input_ids"][row].tolist() == [[1, 1, 1, 0, 0]] * 2
        # a label of 0 would be trained on
        assert both["labels"][row].tolist() == [[1, 1, 1, -100, -100]] * 2


def test_the_second_batch_takes_the_floating_dtype_of_the_first():
    both = concatenate((x.half(), y), (x, y))
    assert both[0].dtype == torch.half
    assert both[1].dtype == torch.long


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"leaf 'weights' of length 10 .*HINT: keep constants out"):
        leaves({"x": x, "weights": torch.ones(10)})
    with pytest.raises(ValueError, match=r"type 'str' without per-sample leaves.*HINT"):
        batch_size("nothing")
    with pytest.raises(ValueError, match=r"leaves \['0', '1', '2'\]; expected \['0', '1'\].*HINT"):
        concatenate((x, y), (x, y, y))
    with pytest.raises(ValueError, match=r"shapes \(3,\) and \(\); expected as many dimensions.*HINT"):
        concatenate((x, y), (x[:, 0], y))


def test_a_hugging_face_batch_encoding():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.ones(2, 3), "labels": torch.tensor([0, 1])})
    picked = select(encoding, torch.tensor([1]))
    assert type(picked) is transformers.BatchEncoding
    assert picked["labels"].tolist() == [1]
    assert encoding["labels"].tolist() == [0, 1]


def test_strings_in_tuples_as_torch_collates_them():
    batch = torch.utils.data.default_collate([(torch.zeros(2), 0, "a"), (torch.ones(2), 1, "b")])
    assert leaves(batch)["2"] == ["a", "b"]
    joined = concatenate(batch, select(batch, torch.tensor([1])))
    assert joined[2] == ("a", "b", "b")
    assert len(joined[0]) == 3
