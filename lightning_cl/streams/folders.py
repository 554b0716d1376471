"""Your own data: image folders and any map-style data set."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_cl.errors import InputError
from lightning_cl.streams.item_data import ItemData
from lightning_cl.streams.source import Classification, SourceData, check_labels, numbered
from lightning_cl.streams.splitting import hold_out
from lightning_cl.streams.tensor_data import TensorData


class ResizeAndCrop:
    """The largest centred square of an RGB image, resized; picklable for workers.

    Args:
        size: Side of the result in pixels.
        interpolation: How it is resized, in torchvision's words: ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ...

    Raises:
        InputError: For another word.
    """

    def __init__(self, size: int, interpolation: str = "bilinear") -> None:
        from torchvision.transforms import InterpolationMode

        words = [mode.value for mode in InterpolationMode]
        if interpolation not in words:
            raise InputError(f"interpolation={interpolation!r}", f"one of {', '.join(words)}", "leave it out")
        self.size, self.interpolation = size, InterpolationMode(interpolation)

    def __call__(self, image: Any) -> Any:
        """A PIL image in, a PIL image of ``size`` x ``size`` out."""
        from torchvision.transforms import functional

        image = image.convert("RGB")
        square = functional.center_crop(image, min(image.size))
        return functional.resize(square, [self.size, self.size], self.interpolation)


def image_folder(
    path: str | Path | None,
    size: int = 224,
    test_path: str | Path | None = None,
    test_fraction: float = 0.2,
    interpolation: str = "bilinear",
) -> Classification:
    """A folder with one sub-folder of images per class (torchvision's ``ImageFolder``), read from disk as needed.

    Args:
        path: The folder; sub-folder names are class names, in alphabetical order.
        size: Images are cropped to their centre square and resized to ``size`` x ``size``, RGB.
        test_path: A folder of test images with the same sub-folders; if None, a part of ``path`` is the test data.
        test_fraction: That part, stratified and fixed.
        interpolation: How images are resized: ``"bilinear"``, ``"bicubic"``, ...

    Raises:
        InputError: If a folder is missing or holds no images, or the test folder has other classes.
    """
    resize = ResizeAndCrop(size, interpolation)
    train = _folder(path, "path")
    labels = torch.tensor(train.targets)
    if test_path is None:
        if not 0 < test_fraction < 1:
            raise InputError(
                f"test_fraction={test_fraction!r}", "a fraction inside (0, 1)", "set test_fraction=0.2, or a test_path"
            )
        kept, held = hold_out(labels, test_fraction, "image_folder", "test")
        every = ItemData(train, None, labels, resize)
        return Classification(every.view(kept), every.view(held), train.classes)
    test = _folder(test_path, "test_path")
    if test.classes != train.classes:
        raise InputError(f"test_path classes {test.classes!r}", f"{train.classes!r}", "use the same sub-folder names")
    return Classification(
        ItemData(train, None, labels, resize),
        ItemData(test, None, torch.tensor(test.targets), resize, first_id=len(train)),
        train.classes,
    )


def custom(
    train: Any,
    test: Any = None,
    class_names: Sequence[str] | None = None,
    test_fraction: float = 0.2,
) -> Classification:
    """Any map-style data sets whose items are ``(input, label)``.

    Labels are taken from ``.targets`` or ``.labels``, otherwise by reading every item once. A ``TensorDataset`` of
    inputs and labels is served as tensors, anything else item by item.

    Args:
        train: The training data set; in a config, anything with a ``_target_``.
        test: The test data set; if None, a fixed stratified part of ``train`` is the test data.
        class_names: Names of the classes; by default ``.classes`` of ``train``, else the numbers.
        test_fraction: The part of ``train`` used as test data if there is no other.

    Raises:
        InputError: If a data set is not map-style, or a label is out of range.
    """
    names = class_names if class_names is not None else getattr(train, "classes", None)
    n_classes = None if names is None else len(names)
    labels = check_labels(_labels(train, "train"), n_classes, "training")
    if test is not None:
        test_labels = check_labels(_labels(test, "test"), n_classes, "test")
        return Classification(_data(train, labels), _data(test, test_labels, first_id=len(train)), names)
    if not 0 < test_fraction < 1:
        raise InputError(
            f"test_fraction={test_fraction!r}", "a fraction inside (0, 1)", "set test_fraction=0.2, or a test data set"
        )
    kept, held = hold_out(labels, test_fraction, "custom", "test")
    every = _data(train, labels)
    return Classification(every.view(kept), every.view(held), numbered(labels) if names is None else names)


def _data(dataset: Any, labels: Tensor, first_id: int = 0) -> SourceData:
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return TensorData(dataset.tensors[0], labels, first_id=first_id)
    return ItemData(dataset, None, labels, first_id=first_id)


def _folder(path: str | Path | None, argument: str) -> Any:
    from torchvision.datasets import ImageFolder

    hint = f"set stream.dataset.{argument}=FOLDER"
    if path is None or not Path(path).is_dir():
        given = None if path is None else str(path)
        raise InputError(f"{argument}={given!r}, which is not a folder", "a folder with a sub-folder per class", hint)
    try:
        return ImageFolder(str(path))
    except FileNotFoundError as error:
        expected = "a folder with a sub-folder of images per class"
        raise InputError(f"{argument}={str(path)!r} ({error})", expected, hint) from error


def _labels(dataset: Any, part: str) -> Any:
    """All labels of a data set, read item by item only if it does not list them."""
    map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, dict)
    if not map_style:
        raise InputError(
            f"{part}={dataset!r}",
            "a map-style data set (with a length, indexed from 0) of (input, label)",
            f"set +stream.dataset.{part}._target_=package.Dataset",
        )
    if type(dataset) is TensorDataset and len(dataset.tensors) == 2:
        return dataset.tensors[1]
    for name in ("targets", "labels"):
        if (listed := getattr(dataset, name, None)) is not None:
            return listed
    return [_label(dataset, part, index) for index in range(len(dataset))]


def _label(dataset: Any, part: str, index: int) -> Any:
    try:
        label = dataset[index][1]
        return label.item() if hasattr(label, "item") else label
    except Exception as error:  # the data set's own code
        raise InputError(
            f"{part} item {index} ({type(error).__name__}: {error})",
            "(input, label), the label one integer",
            "HYDRA_FULL_ERROR=1 shows where it failed",
        ) from error
