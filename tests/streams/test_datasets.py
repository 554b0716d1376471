import os
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_cl.errors import InputError
from lightning_cl.streams import (
    Classification,
    TensorData,
    build_stream,
    cifar10,
    cifar100,
    custom,
    digits,
    fashion_mnist,
    image_folder,
    mnist,
)
from tests.streams.helpers import NoisyItems

needs_mnist = pytest.mark.skipif(
    not os.path.isdir(os.path.join(os.environ.get("LIGHTNING_CL_DATA", ""), "MNIST")), reason="no MNIST"
)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    source = digits()
    assert source.class_names == [str(digit) for digit in range(10)]
    assert (len(source.train), len(source.test)) == (1438, 359)
    x = torch.cat([part.batch(torch.arange(len(part)))[0] for part in (source.train, source.test)])
    assert x.shape == (1797, 1, 8, 8)
    assert 0 == x.min() < x.max() == 1
    rows = lambda images: Counter(map(tuple, images.tolist()))  # noqa: E731
    assert rows((x.view(-1, 64) * 16).int()) == rows(torch.from_numpy(load_digits().data).int())
    counts = source.test.targets.bincount()
    assert counts.min() >= 34
    assert counts.max() <= 38
    assert torch.equal(digits().test.rows, source.test.rows)


@needs_mnist
def test_mnist_is_the_real_one():
    source = mnist(os.environ["LIGHTNING_CL_DATA"])
    assert source.train.targets.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert source.test.targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    x, _ = source.train.batch(torch.arange(60000))
    assert x.shape == (60000, 1, 28, 28)
    assert abs(x.mean() - 0.1307) < 1e-4
    assert abs(x.std() - 0.3081) < 1e-4


@pytest.mark.parametrize("load", [mnist, fashion_mnist, cifar10, cifar100])
def test_a_missing_data_folder_is_named(load, tmp_path, monkeypatch):
    folder = tmp_path / "nothing"
    with pytest.raises(
        InputError, match=rf"^data_dir='{folder}' \(.* not found\); expected a folder .* HINT: set data_dir"
    ):
        load(folder)
    assert not folder.exists()
    monkeypatch.setenv("LIGHTNING_CL_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(InputError, match="elsewhere"):
        load()


def test_a_failed_download_says_so(tmp_path, monkeypatch):
    import torchvision

    def fail(*args, **kwargs):
        raise RuntimeError("Error downloading train-images")

    monkeypatch.setattr(torchvision.datasets, "MNIST", fail)
    with pytest.raises(InputError, match=r"the download failed: Error downloading train-images\); expected a folder"):
        mnist(tmp_path, download=True)


@pytest.mark.parametrize(("load", "name"), [(cifar10, "CIFAR10"), (cifar100, "CIFAR100")])
def test_cifar_images_are_channels_first(load, name, monkeypatch):
    import torchvision

    data = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)

    class Fake(SimpleNamespace):
        def __len__(self):
            return 6

    monkeypatch.setattr(
        torchvision.datasets,
        name,
        lambda *args, train, download: Fake(data=data, targets=[0, 1, 2, 0, 1, 2], classes=["a", "b", "c"]),
    )
    source = load("anywhere")
    assert source.class_names == ["a", "b", "c"]
    x, y = source.test.batch(torch.tensor([4]))
    assert y.item() == 1
    assert np.array_equal((x[0] * 255).round().byte().permute(1, 2, 0).numpy(), data[4])
    assert source.test.first_id == 6


@pytest.fixture
def folder(tmp_path):
    for label, name in enumerate(["cat", "dog", "owl"]):
        (tmp_path / name).mkdir()
        for number in range(5):
            image = Image.new("RGB" if number else "L", (20, 12), 0)
            image.paste(255 if number == 0 else (80 * label, 10 * number, 255), (4, 0, 16, 12))
            image.save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_image_folder(folder):
    source = image_folder(folder, size=8, test_fraction=0.2)
    assert source.class_names == ["cat", "dog", "owl"]
    assert (len(source.train), len(source.test)) == (12, 3)
    assert source.train.targets.bincount().tolist() == [4, 4, 4]
    every = [part.batch(torch.arange(len(part))) for part in (source.train, source.test)]
    x, y = (torch.cat(leaf) for leaf in zip(*every, strict=True))
    assert x.shape == (15, 3, 8, 8)
    # the centre square of every image is one colour
    assert (x == x[:, :, :1, :1]).all()
    for colour, label in zip(x[:, :, 0, 0], y, strict=True):
        assert colour.eq(1).all() or (colour[0] * 255).round() == 80 * label
    stream = build_stream(source, n_tasks=3)
    assert [task.classes for task in stream] == [("cat",), ("dog",), ("owl",)]
    assert stream.input_shape == (3, 8, 8)


def test_image_folder_with_its_own_test_part(folder):
    source = image_folder(folder, size=8, test_path=folder)
    assert (len(source.train), len(source.test)) == (15, 15)


def test_wrong_image_folders_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(InputError, match=r"^path='no/where', which is not a folder; .*HINT: set stream.dataset.path="):
        image_folder("no/where")
    with pytest.raises(InputError, match=r"^path=None, which is not a folder"):
        image_folder(None)
    with pytest.raises(InputError, match=rf"^test_path='{empty}' \(.*\); .*HINT: set stream.dataset.test_path="):
        image_folder(folder, test_path=empty)
    (empty / "cat").mkdir()
    Image.new("L", (2, 2)).save(empty / "cat" / "0.png")
    with pytest.raises(InputError, match=r"^test_path classes \['cat'\]; expected \['cat', 'dog', 'owl'\]\. HINT"):
        image_folder(folder, test_path=empty)
    with pytest.raises(InputError, match=r"^test_fraction=1\.0; expected a fraction inside \(0, 1\)\. HINT"):
        image_folder(folder, test_fraction=1.0)


def test_custom_takes_any_map_style_data_set():
    source = custom(NoisyItems())
    assert source.class_names == ["0", "1", "2"]
    assert (len(source.train), len(source.test)) == (18, 5)
    assert custom(NoisyItems(), class_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    both = custom(NoisyItems(23), NoisyItems(7))
    assert (len(both.train), len(both.test), both.test.first_id) == (23, 7, 23)
    # labels are read item by item where they are not listed
    pairs = [(torch.zeros(2), torch.tensor(index % 2)) for index in range(6)]
    assert custom(pairs, pairs).train.targets.tolist() == [0, 1] * 3
    assert custom(SimpleLabels(), SimpleLabels()).train.targets.tolist() == [1, 0]


def test_tensor_data_sets_are_served_as_tensors():
    x, y = torch.rand(10, 2), torch.arange(10) % 2
    dataset = torch.utils.data.TensorDataset(x, y)
    for source in (custom(dataset, dataset), custom(dataset)):
        assert source.train.cheap
        assert source.test.cheap
    assert torch.equal(custom(dataset, dataset).test.batch(torch.tensor([3]))[0][0], x[3])


class SimpleLabels:
    labels = np.array([1, 0])
    classes = ("x", "y")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(1), -1


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        ([0, 1, -1], None, r"^training label -1 at index 2; expected an integer >= 0\. HINT: number the classes"),
        ([0, 1.5, 1], None, r"^training label 1\.5 at index 1; expected an integer >= 0"),
        ([0, 3, 1], ["a", "b"], r"^training label 3 at index 1; expected an integer from 0 to 1\. HINT"),
        ([0, float("nan"), 1], ["a", "b"], r"^training label nan at index 1"),
        ([[0], [1], [1]], None, r"^training labels of shape \(3, 1\); expected one integer per sample"),
        (["cat", "dog", "cat"], None, r"^training labels that are no numbers \(.*\); expected an integer >= 0"),
    ],
)
def test_wrong_labels_are_named(labels, names, message):
    dataset = SimpleNamespace(targets=labels)
    items = type("Items", (), {"__len__": lambda self: 3, "__getitem__": lambda self, i: (0, 0), "targets": labels})()
    with pytest.raises(InputError, match=message):
        custom(items, dataset, class_names=names)


def test_classification_checks_labels_too():
    good, bad = (TensorData(torch.zeros(3, 1), torch.tensor(labels)) for labels in ([0, 1, 1], [0, 2, 1]))
    with pytest.raises(InputError, match=r"^test label 2 at index 1; expected an integer from 0 to 1\. HINT"):
        Classification(good, bad)
    with pytest.raises(InputError, match=r"^class name 'a' twice; expected a name of its own for each class\. HINT"):
        Classification(good, good, ["a", "a"])


def test_custom_says_what_it_needs():
    with pytest.raises(
        InputError, match=r"^train=\{\}; expected a map-style.* HINT: set \+stream.dataset.train._target_"
    ):
        custom({})
    with pytest.raises(
        InputError, match=r"^test=<generator .*; expected a map-style.* HINT: set \+stream.dataset.test"
    ):
        custom(NoisyItems(), (n for n in range(3)))
    with pytest.raises(InputError, match=r"^test_fraction=0; expected a fraction inside \(0, 1\)\. HINT: set test_f"):
        custom(NoisyItems(), test_fraction=0)
