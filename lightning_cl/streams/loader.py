"""The loader that can be stopped at any batch and continued there."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import clone_batch
from lightning_cl.functional.sampling import draw_class_balanced
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.data import Data, sample_ids


class TaskLoader:
    """Batches of a task in an order that is a function of (seed, task, epoch), resumable after any batch.

    Not a ``DataLoader``: cheap data are indexed in this process, a batch at a time. For other data and
    ``num_workers > 0`` a ``DataLoader`` of whole batches does the work, with the same result. Lightning's
    ``set_epoch``, ``state_dict`` and ``load_state_dict`` protocols are met. In a distributed job a shuffled loader
    serves each process its own share (padded by wrapping to equal length); an unshuffled one serves all to everybody,
    or, if it is ``shared``, each sample to one process (nothing is padded: the last batch of some has a sample more
    than ``batch_size``, so that all have as many batches: sharded layers wait for each other).

    Args:
        data: What to serve.
        batch_size: Samples per batch (per process).
        shuffle: A new order every epoch; otherwise the data's own.
        augment: Whether the data's random augmentation is applied.
        drop_last: Leave out a last batch that is not full.
        seed: Seed of the order.
        task_id: Goes into the order's seed.
        num_workers: Processes that prepare batches, for data that are not ``cheap``.
        in_order: Serve the data in their own order although ``shuffle`` is set (each process still has its share): for
            streams that drift.
        updates_per_batch: How often each batch is served, one time after the other, as it is. Callbacks with a memory
            draw anew each time, and store the batch after the last. Any train loader of yours that has this attribute,
            and does so, is treated alike.
        sampling: Of a shuffled loader: ``"once"`` serves every sample once an epoch; ``"uniform"`` draws samples
            independently, with replacement; ``"class_balanced"`` draws a class first, then one of its samples.
        epoch_size: Draws in an epoch of these two; as many as there are samples by default.
        shared: Whether the processes of a distributed job share the samples of an unshuffled loader. One that has fewer
            samples than there are processes serves all to everybody.

    State: ``{"version": 1, "epoch": e, "batches": n}``, n batches yielded in epoch e, each time counted.

    Raises:
        InputError: If ``batch_size`` or ``updates_per_batch`` is below 1, or ``drop_last`` would leave no batch at all.

    Example:
        >>> from lightning_cl.streams import TensorData
        >>> loader = TaskLoader(TensorData(torch.zeros(5, 2), torch.arange(5)), batch_size=2)
        >>> [y.tolist() for _, y in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        data: Data,
        batch_size: int,
        *,
        shuffle: bool = False,
        augment: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        task_id: int = 0,
        num_workers: int = 0,
        in_order: bool = False,
        updates_per_batch: int = 1,
        sampling: Literal["once", "uniform", "class_balanced"] = "once",
        epoch_size: int | None = None,
        shared: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size={batch_size!r}", "an integer >= 1", "set batch_size=128")
        draws = sampling in ("uniform", "class_balanced")
        if (not draws and sampling != "once") or (draws and (in_order or not shuffle)):
            given = f"sampling={sampling!r} with shuffle={shuffle}, in_order={in_order}"
            expected = "'once', or with shuffle=True and in_order=False 'uniform' or 'class_balanced'"
            raise InputError(given, expected, "leave it out for 'once'")
        if epoch_size is not None and (sampling == "once" or epoch_size < 1):
            expected = "an integer >= 1 with sampling='uniform' or 'class_balanced'"
            raise InputError(f"epoch_size={epoch_size!r} with sampling={sampling!r}", expected, "leave it out")
        self.sampling, self.epoch_size = sampling, len(data) if epoch_size is None else epoch_size
        if drop_last and 0 < self.epoch_size < batch_size:
            raise InputError(
                f"drop_last with batch_size={batch_size} on {self.epoch_size} samples",
                "at least one full batch",
                "set a smaller batch_size or drop_last=false",
            )
        if updates_per_batch < 1:
            raise InputError(f"updates_per_batch={updates_per_batch!r}", "an integer >= 1", "set updates_per_batch=1")
        self.dataset, self.batch_size, self.num_workers = data, batch_size, num_workers
        self.shuffle, self.augment, self.drop_last = shuffle, augment, drop_last
        self.seed, self.task_id = seed, task_id
        self.in_order, self.updates_per_batch, self.shared = in_order, updates_per_batch, shared
        self._epoch = self._batches = 0
        self._resume = False
        self._epoch_batches: tuple[Tensor, ...] = ()

    @property
    def sampler(self) -> "TaskLoader":
        """Itself, because that is where Lightning looks for ``set_epoch``."""
        return self

    @property
    def batch_sampler(self) -> None:
        """None: Lightning looks for one in every loader that has a sampler."""
        return None

    @property
    def epoch(self) -> int:
        """The epoch whose order is served."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch; if it is another than the current one, it starts at its first batch."""
        if epoch != self._epoch:
            self._epoch, self._batches, self._resume = epoch, 0, False

    def state_dict(self) -> dict[str, int]:
        """Where the loader is."""
        return {"version": 1, "epoch": self._epoch, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration of the saved epoch start after the batches already yielded."""
        self._epoch, self._batches, self._resume = state["epoch"], state["batches"], True

    def plain(self, batch_size: int | None = None) -> "TaskLoader":
        """The same data once through, in their own order, as they are: for importances and evaluation."""
        return TaskLoader(self.dataset, batch_size or self.batch_size, num_workers=self.num_workers)

    def __len__(self) -> int:
        """Number of batches in an epoch (of this process), each as often as it is served."""
        n, world = self.epoch_size if self.shuffle else len(self.dataset), _world()[1]
        if self.shuffle:
            n = -(-n // world)
        elif self._is_shared():
            n //= world
        n = n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return n * self.updates_per_batch

    def __iter__(self) -> Iterator[Any]:
        """One epoch, or what is left of it. Nothing is computed before the first ``next``: Lightning sets the epoch
        after it has asked for the iterator."""
        start = self._batches if self._resume and self._batches < len(self) else 0
        self._resume, self._batches = False, start
        times = self.updates_per_batch
        batches, n = self._order().split(self.batch_size), len(self) // times
        if self._is_shared() and not self.drop_last and len(batches) > n:
            batches = (*batches[:-2], torch.cat(batches[-2:]))
        self._epoch_batches = batches[:n]
        batches = batches[start // times : n]
        for batch in self._serve(batches):
            for left in reversed(range(times - self._batches % times)):
                self._batches += 1
                # a copy, because a batch may be changed in place while it is trained on
                yield clone_batch(batch) if left else batch

    def sample_ids(self, number: int) -> Tensor | None:
        """What names the samples of batch ``number`` of the epoch that is served, (N,) long; None if nothing does."""
        return sample_ids(self.dataset, self._epoch_batches[number // self.updates_per_batch])

    def _is_shared(self) -> bool:
        return self.shared and not self.shuffle and len(self.dataset) >= _world()[1]

    def _order(self) -> Tensor:
        """Sample indices of this epoch, of this process."""
        n = len(self.dataset)
        if not self.shuffle:
            return torch.arange(_world()[0], n, _world()[1]) if self._is_shared() else torch.arange(n)
        source = generator(self.seed, "order", self.task_id, self._epoch)
        if self.in_order:
            order = torch.arange(n)
        elif self.sampling == "once":
            order = torch.randperm(n, generator=source)
        elif self.sampling == "uniform":
            order = torch.randint(n, (self.epoch_size,), generator=source)
        else:
            order = draw_class_balanced(self.dataset.targets, self.epoch_size, source)
        n = len(order)
        rank, world = _world()
        if world > 1:
            order = order.repeat(-(-world // n) + 1)[: -(-n // world) * world][rank::world]
        return order

    def _serve(self, batches: tuple[Tensor, ...]) -> Iterator[Any]:
        if self.dataset.cheap or self.num_workers == 0:
            for indices in batches:
                yield self.dataset.batch(indices, epoch=self._epoch, augment=self.augment)
            return
        # its own generator, because a DataLoader otherwise draws a seed from the global one
        yield from DataLoader(
            _Batches(self.dataset, batches, self._epoch, self.augment),  # type: ignore[arg-type]
            batch_size=None,
            num_workers=self.num_workers,
            generator=generator(self.seed, "workers", self.task_id, self._epoch),
        )


class _Batches:
    """The batches of one epoch as a map-style data set, so that each worker prepares whole batches."""

    def __init__(self, data: Data, batches: tuple[Tensor, ...], epoch: int, augment: bool) -> None:
        self.data, self.batches, self.epoch, self.augment = data, batches, epoch, augment

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Any:
        return self.data.batch(self.batches[index], epoch=self.epoch, augment=self.augment)


def _world() -> tuple[Any, Any]:
    """This process's rank and the number of processes."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
