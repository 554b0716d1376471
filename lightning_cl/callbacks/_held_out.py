"""Training without a few samples of a task, whatever serves them."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, Subset

from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size, select
from lightning_cl.streams.loader import TaskLoader
from lightning_cl.streams.selected_data import SelectedData


def held_out_positions(labels: Tensor, classes: list[int], per_class: int, generator: torch.Generator) -> Tensor:
    """Positions of ``per_class`` random samples of each class, sorted; half of a class that has too few."""
    held = []
    for c in classes:
        at = (labels == c).nonzero().flatten()
        held.append(at[torch.randperm(len(at), generator=generator)[: min(per_class, len(at) // 2)]])
    return torch.cat(held).sort().values if held else torch.empty(0, dtype=torch.long)


def without(loader: Any, positions: Tensor, method: str) -> Any:
    """A training loader like this one, which never serves the samples at these positions of its data.

    Args:
        loader: A ``TaskLoader``, or a ``DataLoader`` of a map-style data set with the default samplers.
        positions: What is left out, (K,) long.
        method: For messages.

    Raises:
        InputError: For other loaders.
    """
    if isinstance(loader, TaskLoader):
        return TaskLoader(
            SelectedData(loader.dataset, _others(len(loader.dataset), positions)),
            loader.batch_size,
            shuffle=loader.shuffle,
            augment=loader.augment,
            drop_last=loader.drop_last,
            seed=loader.seed,
            task_id=loader.task_id,
            num_workers=loader.num_workers,
        )
    plain = isinstance(loader, DataLoader) and type(loader.batch_sampler) is BatchSampler
    if not plain or type(loader.sampler) not in (RandomSampler, SequentialSampler):
        kind = type(loader).__name__
        kind += f" with a {type(loader.sampler).__name__}" if isinstance(loader, DataLoader) else ""
        raise InputError(
            f"{method}, which holds samples out of training, with a train_dataloader of type {kind}",
            "a DataModule of lightning_cl.streams, or DataLoader(map_style_dataset, batch_size=..., shuffle=...)",
            "leave the sampler to DataLoader",
        )
    given: Any = loader
    shuffle = type(loader.sampler) is RandomSampler
    workers: dict[str, Any] = {}
    if loader.num_workers:
        workers = {"prefetch_factor": given.prefetch_factor, "persistent_workers": given.persistent_workers}
    return DataLoader(
        Subset(given.dataset, _others(len(given.dataset), positions).tolist()),
        batch_size=given.batch_size,
        shuffle=shuffle,
        generator=given.sampler.generator if shuffle and given.generator is None else given.generator,
        num_workers=given.num_workers,
        collate_fn=given.collate_fn,
        pin_memory=given.pin_memory,
        drop_last=given.drop_last,
        worker_init_fn=given.worker_init_fn,
        **workers,
    )


def _others(n: int, positions: Tensor) -> Tensor:
    kept = torch.ones(n, dtype=torch.bool)
    kept[positions] = False
    return kept.nonzero().flatten()


class Skipping:
    """The batches of a loader in order, without the samples at some positions."""

    def __init__(self, loader: Iterable[Any], positions: Tensor) -> None:
        self.loader, self.positions = loader, positions

    def __iter__(self) -> Iterator[Any]:
        start = 0
        for batch in self.loader:
            n = batch_size(batch)
            kept = _others(n, self.positions[(self.positions >= start) & (self.positions < start + n)] - start)
            start += n
            if len(kept) == n:
                yield batch
            elif len(kept):
                yield select(batch, kept)
