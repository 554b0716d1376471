"""Streams of tasks: scenarios, task data, loaders that resume, data sets."""

from lightning_cl.streams.augmentations import RandomCropFlip
from lightning_cl.streams.blurred import blurry, gradual
from lightning_cl.streams.build import build_stream
from lightning_cl.streams.concat_data import ConcatData
from lightning_cl.streams.data import Data
from lightning_cl.streams.datasets import cifar10, cifar100, digits, fashion_mnist, mnist
from lightning_cl.streams.folders import custom, image_folder
from lightning_cl.streams.item_data import ItemData
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.scenarios import (
    class_incremental,
    data_incremental,
    domain_incremental,
    online,
    task_incremental,
)
from lightning_cl.streams.source import Classification
from lightning_cl.streams.stream import Stream, merge_tasks
from lightning_cl.streams.subset import subset
from lightning_cl.streams.task import Task
from lightning_cl.streams.tensor_data import TensorData
from lightning_cl.streams.text import text_files, text_lists
from lightning_cl.streams.text_data import TextData
from lightning_cl.streams.tokenizer import TextTokenizer
from lightning_cl.streams.transforms import corruption, permutation, rotation

__all__ = [
    "Classification",
    "ConcatData",
    "Data",
    "ItemData",
    "RandomCropFlip",
    "Stream",
    "Task",
    "TaskDataModule",
    "TaskLoader",
    "TensorData",
    "TextData",
    "TextTokenizer",
    "blurry",
    "build_stream",
    "cifar10",
    "cifar100",
    "class_incremental",
    "corruption",
    "custom",
    "data_incremental",
    "digits",
    "domain_incremental",
    "fashion_mnist",
    "gradual",
    "image_folder",
    "merge_tasks",
    "mnist",
    "online",
    "permutation",
    "rotation",
    "subset",
    "task_incremental",
    "text_files",
    "text_lists",
]


def __getattr__(name: str) -> object:
    # lightning.pytorch takes seconds to import and only the datamodule needs it
    if name == "TaskDataModule":
        from lightning_cl.streams.datamodule import TaskDataModule

        return TaskDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
