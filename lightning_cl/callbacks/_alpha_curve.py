"""A metric along the line between two models, and the point to stay at."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from lightning_cl import _compat, _compat_loops
from lightning_cl.callbacks._gather import world_size
from lightning_cl.errors import InputError
from lightning_cl.functional.batch_norm import layers_with_statistics, reestimate_batch_norm
from lightning_cl.functional.interpolation import interpolate


class Line:
    """The models between ``start`` and the module's present weights; 0 is the start.

    Args:
        module: The fine-tuned module; :meth:`go_to` changes its weights.
        start: A state dict, of fewer head rows perhaps.
        taken: Tells which entries are the fine-tuned model's everywhere, by name.
        batches: Gives training batches, on which running statistics are estimated anew; they are interpolated if None.
        trainer: Whose data hooks move a batch to the device, if there is one.
    """

    def __init__(
        self,
        module: Any,
        start: Mapping[str, Any],
        taken: Callable[[str], bool],
        batches: Callable[[], Iterable[Any]] | None = None,
        trainer: Any = None,
    ) -> None:
        self.module, self.batches, self.trainer = module, batches, trainer
        self.end = {name: _copy(value) for name, value in module.state_dict().items()}
        self.start = {name: value for name, value in start.items() if not taken(name)}
        # statistics that fine-tuning has left alone (a frozen part's) are right as they are
        self.layers = [
            name
            for name in layers_with_statistics(module)
            if not _same(start.get(f"{name}.running_mean"), self.end.get(f"{name}.running_mean"))
        ]

    def go_to(self, alpha: float) -> None:
        """Give the module the weights at ``alpha``."""
        self.module.load_state_dict(interpolate(self.start, self.end, alpha))
        # at the end the statistics are the training's own
        if self.batches is not None and alpha < 1 and self.layers:
            with _compat.seeded(0), _compat.muted_logging(self.module):
                reestimate_batch_norm(self.module, self.batches(), self._forward, self.layers)
            self._share()

    def _forward(self, batch: Any) -> None:
        batch = _compat.move_batch(self.trainer, self.module, batch)
        _compat.training_step_of(self.module)(batch, 0)

    def _share(self) -> None:
        """Every process has seen its own share of the batches."""
        if world_size() == 1:
            return
        layers = layers_with_statistics(self.module)
        for name in self.layers:
            statistics: list[Any] = [layers[name].running_mean, layers[name].running_var]
            for values in statistics:
                torch.distributed.all_reduce(values)
                values /= world_size()


def best_alpha(alphas: Sequence[float], values: Sequence[float | None], higher_is_better: bool = True) -> float:
    """The alpha of the best value; the smallest of equals, because it is nearest to the model that was there before.

    Raises:
        InputError: If no value is a number.

    Example:
        >>> best_alpha([0.0, 0.5, 1.0], [0.2, 0.9, 0.9])
        0.5
    """
    sign = 1 if higher_is_better else -1
    pairs = zip(alphas, values, strict=True)
    known = [(-sign * value, alpha) for alpha, value in pairs if value is not None and value == value]
    if not known:
        raise InputError(f"validation values {list(values)}", "at least one number", "give a fixed alpha: choose=0.5")
    return min(known)[1]


def validated(trainer: Any, module: Any, monitor: str) -> float:
    """The metric that ``validate`` logs for the weights there are, on this fit's validation data.

    Raises:
        InputError: If there are no validation data, or the metric is not logged.
    """
    found = _compat_loops.validate_inside(trainer, module)
    if found is None:
        raise InputError("choose='val' without validation data", "a val_dataloader", "give a fixed alpha: choose=0.5")
    if monitor not in found:
        raise InputError(f"monitor={monitor!r} of WiSEFT", f"one of {sorted(found)}", "log it in validation_step")
    return found[monitor]


def mean(values: Sequence[float | None]) -> float | None:
    """None if one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) and torch.equal(a.cpu(), b.cpu())
