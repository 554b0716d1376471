"""Streams of tasks: scenarios, task data, loaders that resume, data sets."""

from lightning_cl.streams.concat_data import ConcatData
from lightning_cl.streams.data import Data
from lightning_cl.streams.datasets import cifar10, cifar100, digits, fashion_mnist, mnist
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.scenarios import build_stream
from lightning_cl.streams.source import Classification
from lightning_cl.streams.stream import Stream, merge_tasks
from lightning_cl.streams.task import Task
from lightning_cl.streams.tensor_data import TensorData

__all__ = [
    "Classification",
    "ConcatData",
    "Data",
    "Stream",
    "Task",
    "TaskDataModule",
    "TaskLoader",
    "TensorData",
    "build_stream",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "merge_tasks",
    "mnist",
]


def __getattr__(name: str) -> object:
    # lightning.pytorch takes seconds to import and only the datamodule needs it
    if name == "TaskDataModule":
        from lightning_cl.streams.datamodule import TaskDataModule

        return TaskDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
