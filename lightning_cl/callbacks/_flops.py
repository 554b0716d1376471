"""Counts the work of a fit: FLOPs of one real step of each kind, times how often it ran."""

from collections.abc import Iterable, Iterator
from typing import Any

from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class FlopCounter(Callback):
    """Counts FLOPs of training, replayed samples and extra losses included.

    A kind of step is the shapes of the batch and the number of trainable tensors; ``torch.utils.flop_counter`` measures
    its first step (matrix products and convolutions), later ones are counted. State: FLOPs and steps of each kind.
    """

    def __init__(self) -> None:
        self.flops: dict[str, int] = {}
        self.steps: dict[str, int] = {}
        self._mode: FlopCounterMode | None = None
        self._kind = ""
        self._trainable = 0

    @property
    def total(self) -> int:
        """FLOPs so far."""
        return sum(self.flops[kind] * n for kind, n in self.steps.items())

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Look how much is trainable."""
        self._trainable = sum(p.requires_grad for p in pl_module.parameters())

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Start measuring if a step of this kind has not been seen."""
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
        self._kind = f"{shapes} {self._trainable}"
        if self._kind not in self.flops:
            self._mode = FlopCounterMode(display=False)
            self._mode.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop measuring, and count the step."""
        self._stop()
        self.steps[self._kind] = self.steps.get(self._kind, 0) + 1

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave no dispatch mode behind."""
        self._stop()

    def _stop(self) -> None:
        if self._mode is not None:
            self._mode.__exit__(None, None, None)
            self.flops[self._kind] = int(self._mode.get_total_flops())
            self._mode = None

    def state_dict(self) -> dict[str, Any]:
        """What was measured and counted."""
        return {"version": 1, "flops": dict(self.flops), "steps": dict(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.flops, self.steps = dict(state_dict["flops"]), dict(state_dict["steps"])


class CountedLoader:
    """Passes a loader's batches on; what is done with the first batch is measured, and scaled by samples.

    Args:
        loader: Any iterable of batches.
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.dataset = getattr(loader, "dataset", None)
        self.flops = 0

    def __iter__(self) -> Iterator[Any]:
        """The batches."""
        return self._measured(self.loader)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.loader)

    def _measured(self, loader: Iterable[Any]) -> Iterator[Any]:
        first, samples, mode = 0, 0, None
        try:
            for batch in loader:
                if mode is not None:
                    mode = self._close(mode)
                size = next((len(x) for x in tree_leaves(batch) if isinstance(x, Tensor) and x.dim()), 1)
                samples += size
                if first == 0:
                    first, mode = size, FlopCounterMode(display=False)
                    mode.__enter__()
                yield batch
        finally:
            if mode is not None:
                self._close(mode)
            self.flops = round(self.flops * samples / first) if first else 0

    def _close(self, mode: FlopCounterMode) -> None:
        mode.__exit__(None, None, None)
        self.flops = int(mode.get_total_flops())
