"""Per-sample losses and logits of LightningModules that know nothing of us."""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lightning_cl import _compat
from lightning_cl.callbacks._hub import loss_of
from lightning_cl.callbacks._recording import ManualRecorder
from lightning_cl.errors import InputError
from lightning_cl.functional.batches import leaves, select
from lightning_cl.memory import find_labels

log = logging.getLogger(__name__)
INPUT_NAMES = ("x", "input", "inputs", "image", "images", "data", "features", "pixel_values")


class Whole:
    """A batch that cannot be split, made of one sample.

    Args:
        batch: The batch.
        pair: Makes the batch that holds the sample twice, or None if nobody knows how.
    """

    def __init__(self, batch: Any, pair: Callable[[], Any] | None) -> None:
        self.batch, self.pair = batch, pair


def is_splittable(batch: Any) -> bool:
    """True if every leaf of the batch has one entry per sample."""
    try:
        return bool(leaves(batch))
    except ValueError:
        return False


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor] | None:
    """``(x, y)`` of a pair of tensors or of a mapping with obvious names; None for anything else."""
    if isinstance(batch, Mapping):
        names = [name for name in INPUT_NAMES if isinstance(batch.get(name), Tensor)]
        x, y = (batch[names[0]] if len(names) == 1 else None), find_labels(batch)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        x, y = batch
    else:
        return None
    integer = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool
    return (x, y.long()) if isinstance(x, Tensor) and isinstance(y, Tensor) and integer else None


def why_no_logits(module: Any, batch: Any) -> str:
    """Empty if the loss of ``training_step`` is the cross-entropy of ``module(x)``; else what speaks against it.

    Log-probabilities are as good as logits: ``log_softmax`` leaves them as they are.
    """
    if not getattr(module, "automatic_optimization", True):
        return "it optimizes manually"
    pair = inputs_and_labels(batch)
    if pair is None:
        return f"a batch of type {type(batch).__name__!r} is not a pair of inputs and integer labels"
    x, y = pair
    with torch.no_grad():
        try:
            output = module(x)
        except Exception as error:  # anybody's forward may want anything
            return f"module(x) raises {type(error).__name__}"
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:-1] != (len(y),):
            return f"module(x) gives {describe(output)}, not logits of shape (N, C)"
        if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= output.shape[1]:
            return f"labels do not lie in [0, {output.shape[1]})"
        loss = loss_of(_compat.training_step_of(module)(batch, 0))
        expected = cross_entropy(output.float(), y)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return "training_step returns no loss"
    if not torch.isclose(loss.float().reshape(()), expected, rtol=1e-4, atol=1e-7):
        return f"the loss of training_step is {float(loss):.5g}, cross_entropy(module(x), y) is {float(expected):.5g}"
    return ""


def logits_of(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits and labels, where :func:`why_no_logits` found nothing against it."""
    pair = inputs_and_labels(batch)
    assert pair is not None
    return module(pair[0]), pair[1]


class TrainingStepLoss:
    """``(module, batch of one) -> loss`` through the module's own ``training_step``.

    Under manual optimization there is no loss; what is returned then is the linear function whose gradient is the one
    that the optimizers would have stepped with. A batch of one that crashes or has no finite loss (``squeeze``, batch
    statistics) is given as two copies of the sample, which leaves a mean loss as it is.

    Raises:
        InputError: If neither a batch of one nor one of two copies works.
    """

    def __init__(self, trainer: Any, module: Any) -> None:
        if "dataloader_iter" in inspect.signature(module.training_step).parameters:
            raise InputError(
                f"{type(module).__name__}.training_step(dataloader_iter)",
                "training_step(batch, ...), to be called with single samples",
                "give loss_fn=lambda module, batch: ... or logits_fn",
            )
        self.step = _compat.training_step_of(module)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        manual = not getattr(module, "automatic_optimization", True)
        self.recorder = ManualRecorder(trainer, module) if manual else None
        self.doubled = False
        self.calls = 0

    def __call__(self, module: Any, batch: Any) -> Tensor:
        """The loss of one sample."""
        # every sample is another batch to modules that alternate between networks
        self.calls += 1
        if isinstance(batch, list) and len(batch) == 1 and isinstance(batch[0], Whole):
            whole = batch[0]
            return self._single_or_pair(module, lambda: whole.batch, whole.pair)
        return self._single_or_pair(module, lambda: batch, lambda: select(batch, torch.tensor([0, 0])))

    def _single_or_pair(self, module: Any, single: Callable[[], Any], pair: Callable[[], Any] | None) -> Tensor:
        problem: Exception | None = None
        if not self.doubled or pair is None:
            try:
                loss = self._loss(single())
                if loss.isfinite().all() or pair is None:
                    return loss
            except Exception as error:  # anybody's training_step may raise anything
                problem = error
        if pair is not None:
            try:
                loss = self._loss(pair())
                self.doubled = True
                return loss
            except Exception as error:
                problem = problem or error
        raise InputError(
            f"{type(module).__name__}.training_step on one sample raised {type(problem).__name__}: {problem}",
            "a training_step that works on a batch of one or two samples",
            "give logits_fn=lambda module, batch: (logits, labels), or loss_fn=lambda module, batch: loss",
        ) from problem

    def _loss(self, batch: Any) -> Tensor:
        if self.recorder is not None:
            gradients = self.recorder(lambda: self.step(batch, self.calls - 1))
            terms = [(p * gradients[id(p)]).sum() for p in self.parameters if id(p) in gradients]
        else:
            loss = loss_of(self.step(batch, self.calls - 1))
            terms = [] if loss is None else [loss.reshape(())]
        # a step that was skipped has no gradient
        return torch.stack(terms).sum() if terms else self.parameters[0].sum() * 0


def describe(value: Any) -> str:
    """Shape and dtype of a tensor, type of anything else."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
