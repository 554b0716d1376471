"""How a callback asks any LightningModule for per-sample gradients."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_cl import _compat
from lightning_cl.callbacks._foreign import (
    TrainingStepLoss,
    Whole,
    is_splittable,
    logits_of,
    outputs_and_targets,
    why_no_logits,
)
from lightning_cl.callbacks._input_errors import input_errors
from lightning_cl.callbacks._snapshot import kept_state
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import batch_size, select
from lightning_cl.functional.fisher import diagonal_fisher
from lightning_cl.functional.seeding import derive_seed

log = logging.getLogger(__name__)


def compute_importance(
    trainer: Any,
    module: Any,
    loader: Any,
    *,
    labels: str,
    n_draws: int,
    n_samples: int | None,
    seed: int,
    likelihood: str,
    top_k: int,
    max_bytes: int,
    logits_fn: Callable[..., Any] | None,
    loss_fn: Callable[..., Any] | None,
    first_batch_only: bool = False,
    quiet: bool = False,
) -> dict[str, Tensor]:
    """Diagonal Fisher of ``module`` over ``loader``, on the module's device; nothing of the module is changed by it.

    The way to the logits is, in this order: ``logits_fn``; ``loss_fn``; the module's own ``importance_logits(batch)``;
    ``module(x)``, or of a mapping without an obvious x ``module(**batch).logits``, if on the first batch its
    cross-entropy is the loss of the module's own ``training_step``, or if another ``likelihood`` is asked for. Where
    there are no logits, the loss is that of ``training_step`` on one sample at a time (the empirical Fisher, whatever
    ``labels`` asks for; a warning says so). Logging is muted, metrics, lists, buffers and global random generators are
    put back, and manually optimized modules do not step.

    Batches that cannot be split into samples (graphs) are collated anew from the loader's data set, one by one.

    Args:
        trainer: The Trainer, or None.
        module: The module, with the weights that will be used.
        loader: Batches of one task.
        labels, n_draws, n_samples, seed, likelihood, top_k, max_bytes, logits_fn, loss_fn: See
            :class:`~lightning_cl.EWC`.
        first_batch_only: Only look whether it works: two samples of the first batch.
        quiet: The warning has been given already.

    Raises:
        InputError: If it cannot work, with what to do about it.
    """
    if logits_fn is None and loss_fn is None and hasattr(module, "importance_logits"):

        def logits_fn(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
            return module.importance_logits(batch)

    with importance_pass(trainer, module, loader, seed=seed, first_batch_only=first_batch_only) as batches:
        if logits_fn is None and loss_fn is None:
            logits_fn, loss_fn = _own_way(trainer, module, batches, labels, likelihood, quiet)
        elif batches.whole and logits_fn is not None:
            raise batches.cannot_split()
        if first_batch_only and labels == "exact":
            labels = "mc"  # one backward pass in place of one per class
        return diagonal_fisher(
            module,
            batches,
            labels=labels,
            likelihood=likelihood,
            n_draws=n_draws,
            top_k=top_k,
            max_bytes=max_bytes,
            n_samples=None if first_batch_only else n_samples,
            distributed=batches.distributed,
            seed=seed,
            logits_fn=logits_fn,
            loss_fn=loss_fn,
        )


def _own_way(
    trainer: Any, module: Any, batches: "TaskBatches", labels: str, likelihood: str, quiet: bool
) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    """``(logits_fn, loss_fn)``, one of them None: what the module itself offers; a loss is said aloud."""
    own_loss = TrainingStepLoss(trainer, module)
    if batches.whole:
        reason = "its batches cannot be split into samples"
    else:
        reason = "" if likelihood != "classification" else why_no_logits(module, batches.first)
    if not reason:
        return (logits_of if likelihood == "classification" else outputs_and_targets), None
    log.log(
        logging.INFO if quiet or labels == "empirical" else logging.WARNING,
        "%s: labels=%r needs logits, and %s; using labels='empirical' with the loss of training_step. "
        "Give logits_fn=lambda module, batch: (logits, labels) if there are logits",
        type(module).__name__,
        labels,
        reason,
    )
    return None, own_loss


@contextlib.contextmanager
def importance_pass(
    trainer: Any, module: Any, loader: Any, *, seed: int, first_batch_only: bool = False
) -> Iterator["TaskBatches"]:
    """A task's batches, in a block in which a pass over them leaves no trace on the module and its loggers.

    Args:
        trainer, module, loader, first_batch_only: See :func:`compute_importance`.
        seed: Of the global random generators in the block.

    Raises:
        InputError: For an empty loader, weights that were changed in the block, and in place of the pure functions'
            ``ValueError``.
    """
    with (
        _compat.seeded(derive_seed(seed, "importance")),
        kept_state(module),
        _kept_weights(module),
        _compat.muted_logging(module),
        _compat.evaluating(module),
        input_errors(),
    ):
        # in here, because an iterator of a DataLoader draws a global random number
        yield TaskBatches(trainer, module, loader, first_batch_only)


def _is_batch(batch: Any) -> bool:
    """Not what a collate function gives that had nothing to give."""
    return batch is not None


class TaskBatches:
    """The loader's batches on the module's device, beside its ``dataset``; unsplittable ones as single samples."""

    def __init__(self, trainer: Any, module: Any, loader: Any, first_only: bool) -> None:
        self.trainer, self.module, self.loader, self.first_only = trainer, module, loader, first_only
        self.dataset: Any = getattr(loader, "dataset", None)
        # one pass only: some loaders count what is done with their batches, others cannot be read twice
        self.iterator = filter(_is_batch, loader)
        try:
            # a loader that measures what is done with its batches must not begin before the pass does
            self.peeked = hasattr(loader, "peek")
            self.first = self._moved(loader.peek() if self.peeked else next(self.iterator))
        except StopIteration:
            raise InputError(
                "a dataloader without batches", "the task's training data", "check its length, and drop_last"
            ) from None
        # looked at behind the transfer hooks, which may turn an object into tensors, or the other way round
        self.whole = not is_splittable(self.first)
        #: Whether every process of the Trainer makes this pass, so that they can share the work.
        self.distributed = not first_only and trainer is not None and dist.is_available() and dist.is_initialized()

    def cannot_split(self) -> InputError:
        return InputError(
            f"a batch of type {type(self.first).__name__!r} that cannot be split into samples",
            "tensors and lists with one entry per sample",
            "give loss_fn=lambda module, batch: loss and importance_dataloader() with batch_size=1",
        )

    def __iter__(self) -> Iterator[Any]:
        if self.whole:
            yield from self._singles()
        elif self.first_only:
            yield select(self.first, slice(0, min(2, batch_size(self.first))))
        else:
            if self.peeked:
                next(self.iterator)
            yield self.first
            yield from map(self._moved, self.iterator)

    def _moved(self, batch: Any) -> Any:
        return _compat.move_batch(self.trainer, self.module, batch)

    def _singles(self) -> Iterator[Any]:
        loader, dataset = self.loader, self.dataset
        map_style = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if map_style and isinstance(loader, DataLoader) and loader.batch_sampler is not None:
            for i in range(min(2, len(dataset)) if self.first_only else len(dataset)):
                sample = dataset[i]

                def pair(sample: Any = sample) -> Any:
                    return self._moved(loader.collate_fn([sample, sample]))

                yield [Whole(self._moved(loader.collate_fn([sample])), pair)]
            return
        if getattr(loader, "batch_size", None) != 1:
            raise self.cannot_split()
        yield [Whole(self.first, None)]
        if not self.first_only:
            yield from ([Whole(self._moved(batch), None)] for batch in self.iterator)


@contextlib.contextmanager
def _kept_weights(module: Any) -> Iterator[None]:
    """Refuse, and undo, a pass that steps optimizers behind the stand-ins (``self.trainer.optimizers``)."""
    parameters = list(module.parameters())
    versions = [p._version for p in parameters]
    manual = not getattr(module, "automatic_optimization", True)
    before = [p.detach().clone() for p in parameters] if manual else []
    yield
    if [p._version for p in parameters] != versions:
        for parameter, value in zip(parameters, before, strict=False):
            parameter.data.copy_(value)
        raise InputError(
            f"{type(module).__name__}.training_step, which changes the weights by itself",
            "optimizers taken from self.optimizers()",
            "give loss_fn=lambda module, batch: loss",
        )
