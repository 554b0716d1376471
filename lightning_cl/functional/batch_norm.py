"""Running statistics of BatchNorm, of weights that nothing was trained with."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def layers_with_statistics(module: nn.Module) -> dict[str, _BatchNorm]:
    """BatchNorm layers that keep running statistics, by name.

    Example:
        >>> list(layers_with_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))))
        ['1']
    """
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, _BatchNorm) and part.track_running_stats and part.running_mean is not None
    }


@torch.no_grad()
def reestimate_batch_norm(
    module: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any], names: Sequence[str] | None = None
) -> int:
    """Set running statistics to the mean of what the batches have with the present weights.

    Means and (unbiased) variances of each batch count alike, as with ``momentum=None``. Only the layers in question are
    in training mode meanwhile: dropout and the others evaluate. Every layer's own ``momentum`` and mode are kept.

    Args:
        module: The model.
        batches: Training batches; shuffled, because one of a single class has that class's variance.
        forward: Runs the model on one batch.
        names: The layers, by name; all that keep running statistics by default.

    Returns:
        The number of batches; the statistics are as they were if there was none, or no layer.
    """
    found = layers_with_statistics(module)
    layers = list(found.values()) if names is None else [found[name] for name in names]
    if not layers:
        return 0
    modes = [(part, part.training) for part in module.modules()]
    momenta = [layer.momentum for layer in layers]
    count = 0
    try:
        module.eval()
        for count, batch in enumerate(batches, start=1):
            for layer in layers:
                if count == 1:
                    layer.reset_running_stats()
                    layer.momentum = None
                layer.training = True
            forward(batch)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for part, training in modes:
            part.training = training
    return count
