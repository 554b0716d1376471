"""One task's loaders for a Trainer."""

from typing import Literal

from lightning.pytorch import LightningDataModule

from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.task import Task


class TaskDataModule(LightningDataModule):
    """Serves one task: shuffled and augmented training batches, plain validation and test batches.

    Use ``Trainer(use_distributed_sampler=False)`` in distributed jobs: the loaders shard themselves.

    Args:
        task: The task.
        batch_size: Training samples per batch.
        eval_batch_size: Samples per batch in evaluation and importance passes that name no other size.
        num_workers: Worker processes for data that are not ``cheap``; the batches do not depend on it.
        seed: Seed of the order of training batches.
        drop_last: Leave out a last training batch that is not full.
        updates_per_batch: How often each training batch is served, one time after the other; see `TaskLoader`.
        sampling, epoch_size: Of the training batches, see :class:`~lightning_cl.streams.TaskLoader`.
    """

    def __init__(
        self,
        task: Task,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 1000,
        num_workers: int = 0,
        seed: int = 0,
        drop_last: bool = False,
        updates_per_batch: int = 1,
        sampling: Literal["once", "uniform", "class_balanced"] = "once",
        epoch_size: int | None = None,
    ) -> None:
        super().__init__()
        self.sampling, self.epoch_size = sampling, epoch_size
        self.task, self.seed, self.drop_last = task, seed, drop_last
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.updates_per_batch = updates_per_batch

    def train_dataloader(self) -> TaskLoader:
        """Shuffled, augmented training batches; order and augmentation follow (seed, task, epoch, index)."""
        return TaskLoader(
            self.task.train,
            self.batch_size,
            shuffle=True,
            augment=True,
            drop_last=self.drop_last,
            seed=self.seed,
            task_id=self.task.id,
            num_workers=self.num_workers,
            in_order=self.task.in_order,
            updates_per_batch=self.updates_per_batch,
            sampling=self.sampling,
            epoch_size=self.epoch_size,
        )

    def val_dataloader(self) -> TaskLoader | list[TaskLoader]:
        """Plain validation batches, or an empty list if the task has no validation data."""
        if self.task.validation is None:
            return []
        return TaskLoader(self.task.validation, self.eval_batch_size, num_workers=self.num_workers)

    def test_dataloader(self) -> TaskLoader:
        """Plain test batches."""
        return TaskLoader(self.task.test, self.eval_batch_size, num_workers=self.num_workers)

    def importance_dataloader(self) -> TaskLoader:
        """The training data as they are: unshuffled, not augmented, nothing dropped."""
        return self.train_dataloader().plain()
