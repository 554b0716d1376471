"""The training data of a task as they are: unmixed, unshuffled, nothing dropped, nothing that was not trained on."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, SequentialSampler, Subset

from lightning_cl import _compat
from lightning_cl.errors import InputError


def plain_loader(trainer: Any, module: Any) -> Any:
    """The task's own training data in order; ``importance_dataloader()`` of the DataModule or module overrides it.

    Of a loader without a length (an ``IterableDataset``, which may have no end) as many batches as were trained on.
    """
    given = _own(trainer, module)
    if given is not None:
        return given()
    loader = plain_of(trainer.train_dataloader)
    n = None if has_length(loader) else _compat.batches_trained(trainer)
    return loader if n is None else FirstBatches(loader, n)


def refuse_several(trainer: Any, module: Any) -> None:
    """Refuse training data that cannot be read in order, without asking anybody for a loader.

    Raises:
        InputError: For several loaders, if nobody defines ``importance_dataloader()``.
    """
    if _own(trainer, module) is None:
        plain_of(trainer.train_dataloader)


def _own(trainer: Any, module: Any) -> Callable[[], Any] | None:
    """``importance_dataloader``, if somebody defines it."""
    for owner in (trainer.datamodule, module):
        given = getattr(owner, "importance_dataloader", None)
        if callable(given):
            return given
    return None


def plain_of(loader: Any) -> Any:
    """A training loader's data in order, nothing dropped; of a sampler over a part of them only that part."""
    if hasattr(loader, "plain"):
        return loader.plain()
    if not isinstance(loader, DataLoader):
        if isinstance(loader, dict | list | tuple):
            raise InputError(
                f"train_dataloader of type {type(loader).__name__!r}",
                "one DataLoader",
                "define importance_dataloader() on the module or DataModule",
            )
        return loader
    common: dict[str, Any] = {"num_workers": loader.num_workers, "collate_fn": loader.collate_fn}
    if not hasattr(loader.dataset, "__getitem__") or not hasattr(loader.dataset, "__len__"):
        return loader
    part = _part(loader)
    dataset = loader.dataset if part is None else Subset(loader.dataset, part)
    if loader.batch_size is None and loader.batch_sampler is None:
        return DataLoader(dataset, batch_size=None, sampler=SequentialSampler(dataset), **common)
    size = loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1
    return DataLoader(dataset, batch_size=size, shuffle=False, drop_last=False, **common)


def has_length(loader: Any) -> bool:
    """Whether it is known where the loader ends; then it can be read again too."""
    try:
        return len(loader) >= 0
    except (TypeError, NotImplementedError):
        return False


def _part(loader: DataLoader[Any]) -> list[int] | None:
    """Sorted positions of a sampler that serves a part of the data (``SubsetRandomSampler``); None if it serves all."""
    sampler = loader.sampler if loader.batch_sampler is None else getattr(loader.batch_sampler, "sampler", None)
    # Lightning's wrapper for several processes
    sampler = getattr(getattr(sampler, "dataset", None), "_sampler", sampler)
    indices = getattr(sampler, "indices", None)
    return None if indices is None or callable(indices) else sorted({int(i) for i in indices})


class FirstBatches:
    """The first n batches of a loader; otherwise the loader."""

    def __init__(self, loader: Iterable[Any], n: int) -> None:
        self.loader, self.n = loader, n

    def __iter__(self) -> Iterator[Any]:
        return islice(self.loader, self.n)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet in a copy
            raise AttributeError(name)
        return getattr(self.loader, name)
