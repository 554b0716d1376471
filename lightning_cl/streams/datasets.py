"""Data sets by name: each function gives a `Classification`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_cl.errors import InputError
from lightning_cl.streams.source import Classification
from lightning_cl.streams.splitting import hold_out
from lightning_cl.streams.tensor_data import TensorData


def digits() -> Classification:
    """scikit-learn's handwritten digits: 1,797 real 8x8 images in [0, 1], 10 classes; comes with scikit-learn.

    A fixed stratified fifth is the test part. Source: E. Alpaydin, C. Kaynak, UCI ML repository, 1998.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().div_(16).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = hold_out(labels, 0.2, "digits", "test")
    every = TensorData(images, labels)
    return Classification(every.view(train), every.view(test))


def mnist(data_dir: str | Path | None = None, download: bool = False) -> Classification:
    """MNIST: 60,000 + 10,000 images 1x28x28 uint8, 10 classes (LeCun et al. 1998), in torchvision's layout."""
    return _grey("MNIST", data_dir, download, None)


def fashion_mnist(data_dir: str | Path | None = None, download: bool = False) -> Classification:
    """FashionMNIST: 60,000 + 10,000 images 1x28x28 uint8, 10 classes (Xiao et al. 2017), in torchvision's layout."""
    from torchvision.datasets import FashionMNIST

    return _grey("FashionMNIST", data_dir, download, FashionMNIST.classes)


def cifar10(data_dir: str | Path | None = None, download: bool = False) -> Classification:
    """CIFAR-10: 50,000 + 10,000 images 3x32x32 uint8, 10 classes (Krizhevsky 2009), in torchvision's layout."""
    return _cifar("CIFAR10", data_dir, download)


def cifar100(data_dir: str | Path | None = None, download: bool = False) -> Classification:
    """CIFAR-100: 50,000 + 10,000 images 3x32x32 uint8, 100 classes (Krizhevsky 2009), in torchvision's layout."""
    return _cifar("CIFAR100", data_dir, download)


def _grey(name: str, data_dir: str | Path | None, download: bool, names: list[str] | None) -> Classification:
    train, test = (_torchvision(name, data_dir, download, part) for part in (True, False))
    return Classification(
        TensorData(train.data.unsqueeze(1), train.targets),
        TensorData(test.data.unsqueeze(1), test.targets, first_id=len(train)),
        names,
    )


def _cifar(name: str, data_dir: str | Path | None, download: bool) -> Classification:
    train, test = (_torchvision(name, data_dir, download, part) for part in (True, False))
    x, x_test = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    return Classification(
        TensorData(x, torch.tensor(train.targets)),
        TensorData(x_test, torch.tensor(test.targets), first_id=len(train)),
        train.classes,
    )


def _torchvision(name: str, data_dir: str | Path | None, download: bool, train: bool) -> Any:
    """A torchvision data set, or an error that says where it was looked for."""
    import torchvision

    folder = Path(data_dir or os.environ.get("LIGHTNING_CL_DATA") or "data")
    kind: Callable[..., Any] = getattr(torchvision.datasets, name)
    try:
        return kind(str(folder), train=train, download=download)
    except (RuntimeError, OSError) as error:
        reason = f"the download failed: {error}" if download else "not found"
        raise InputError(
            f"data_dir={str(folder)!r} ({name} {reason})",
            f"a folder that holds {name} in torchvision's layout",
            "set data_dir=FOLDER, or download=true, or the environment variable LIGHTNING_CL_DATA",
        ) from error
