"""Counts the work of a fit: FLOPs of one real step of each kind, times how often it ran."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lightning_cl import signals
from lightning_cl._compat_flops import flop_counter
from lightning_cl.callbacks._gather import world_size


class FlopCounter(Callback):
    """Counts FLOPs of training, replayed samples and extra losses included.

    A kind of step is the shapes of the batch's samples and the number of trainable tensors.
    ``torch.utils.flop_counter`` measures forward and backward of its first step (matrix products and convolutions, so
    proportional to the number of samples); samples of later steps are counted. State: three numbers for each kind.
    """

    def __init__(self) -> None:
        self.measured: dict[str, list[int]] = {}  # FLOPs of the first step, and its samples
        self.samples: dict[str, int] = {}
        self._mode: FlopCounterMode | None = None
        self._kind, self._size = "", 0
        self._parameters: list[Any] = []

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return sum(flops * self.samples.get(kind, 0) // size for kind, (flops, size) in self.measured.items())

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Look what can be trainable; a fit that goes on inside an epoch starts none."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Look what can be trainable: walking through the modules takes longer than asking their parameters."""
        self._parameters = list(pl_module.parameters())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start measuring if a step of this kind has not been seen."""
        self._leave()
        shapes = [leaf.shape for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        self._size = next((int(shape[0]) for shape in shapes if shape), 1)
        self._kind = f"{[tuple(shape[1:]) for shape in shapes]} {sum(p.requires_grad for p in self._parameters)}"
        if self._kind not in self.measured:
            self._mode = flop_counter()
            self._mode.__enter__()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Stop measuring: an optimizer's elementwise work is not counted, and slow to watch."""
        if pl_module.automatic_optimization:  # otherwise more of the step follows
            self._measure()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step."""
        self._measure()
        self.samples[self._kind] = self.samples.get(self._kind, 0) + self._size

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave no dispatch mode behind; a hook may have skipped the batch that was to be measured."""
        self._leave()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no dispatch mode behind."""
        self._leave()

    def _measure(self) -> None:
        mode = self._leave()
        if mode is not None:
            self.measured[self._kind] = [int(mode.get_total_flops()), self._size]

    def _leave(self) -> FlopCounterMode | None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
        return mode

    def state_dict(self) -> dict[str, Any]:
        """What was measured and counted."""
        return {"version": 1, "measured": dict(self.measured), "samples": dict(self.samples)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.measured, self.samples = dict(state_dict["measured"]), dict(state_dict["samples"])


class CountedLoader:
    """Passes a loader's batches on; what is done with the first batch is measured, and scaled by samples.

    Use it in a ``with`` block: an exception in the pass would else leave the measuring dispatch mode behind.

    Args:
        loader: Any iterable of batches.
        stoppable: Whether a signal that asks to stop ends the pass, because it will be done again from its start.
    """

    def __init__(self, loader: Any, *, stoppable: bool = False) -> None:
        self.loader, self.stoppable = loader, stoppable
        self.dataset = getattr(loader, "dataset", None)
        self._first = self._samples = self._measured = 0
        self._source: Iterable[Any] = loader
        self._mode: FlopCounterMode | None = None

    @property
    def flops(self) -> int:
        """FLOPs of what was done with the batches so far."""
        return round(self._measured * self._samples / self._first) if self._first else 0

    def __enter__(self) -> "CountedLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        try:
            for batch in self._source:
                self._stop()
                size = next((len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()), 1)
                self._samples += size
                if not self._first:
                    self._first, self._mode = size, flop_counter()
                    self._mode.__enter__()
                yield batch
                if self.stoppable and signals.received() and world_size() == 1:
                    raise signals.StopRequested(signals.received())
        finally:
            self._stop()

    def peek(self) -> Any:
        """The first batch, before the pass: what is done with it now is not measured, and the pass has it again.

        The mode that measures may not be entered outside, and left inside, an ``inference_mode`` or ``enable_grad``.
        """
        batches = iter(self.loader)
        first = next(batches)
        self._source = itertools.chain([first], batches)
        return first

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def sample_ids(self, number: int) -> Tensor | None:
        """What the loader calls the samples of its batch of this number; None if it has no names for them."""
        names = getattr(self.loader, "sample_ids", None)
        return None if names is None else names(number)

    def _stop(self) -> None:
        mode, self._mode = self._mode, None
        if mode is not None:
            mode.__exit__(None, None, None)
            self._measured = int(mode.get_total_flops())
