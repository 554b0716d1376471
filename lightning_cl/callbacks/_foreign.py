"""Per-sample losses and logits of LightningModules that know nothing of us."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lightning_cl import _compat
from lightning_cl.callbacks._hub import loss_of
from lightning_cl.callbacks._recording import ManualRecorder
from lightning_cl.errors import InputError
from lightning_cl.functional._importance_pass import default_outputs
from lightning_cl.functional.batches import leaves, select
from lightning_cl.memory import find_labels
from lightning_cl.memory._labels import LABEL_NAMES

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


def inputs_of(batch: Any) -> Tensor | None:
    """The tensor, the first one of a sequence, or that of a mapping with one obvious name; None for anything else."""
    if isinstance(batch, Mapping):
        named = [batch[name] for name in INPUT_NAMES if isinstance(batch.get(name), Tensor)]
        return named[0] if len(named) == 1 else None
    first = batch[0] if isinstance(batch, tuple | list) and batch else batch
    return first if isinstance(first, Tensor) else None


def inputs_and_labels(batch: Any) -> tuple[Any, Tensor] | None:
    """``(x, y)`` of a pair of tensors or of a mapping with obvious names; None for anything else."""
    x = inputs_of(batch)
    if isinstance(batch, Mapping):
        y = find_labels(batch)
    elif isinstance(batch, tuple | list) and len(batch) == 2:
        y = batch[1]
    else:
        return None
    integer = isinstance(y, Tensor) and y.dim() == 1 and not y.is_floating_point() and y.dtype != torch.bool
    return (x, y.long()) if isinstance(x, Tensor) and isinstance(y, Tensor) and integer else None


def why_no_logits(module: Any, batch: Any) -> str:
    """Empty if the loss of ``training_step`` is the cross-entropy of the logits; else what speaks against it.

    These are ``module(x)``, or of a mapping without an obvious x ``module(**batch).logits``, as Hugging Face has it.
    Log-probabilities are as good as logits: ``log_softmax`` leaves them as they are.
    """
    if not getattr(module, "automatic_optimization", True):
        return "it optimizes manually"
    pair, call = inputs_and_labels(batch), "module(x)"
    y = pair[1] if pair is not None else None
    if y is None and isinstance(batch, Mapping) and inputs_of(batch) is None:
        y, call = find_labels(batch), "module(**batch)"
    if y is None:
        return f"a batch of type {type(batch).__name__!r} is not a pair of inputs and integer labels"
    with torch.no_grad():
        try:
            output = logits_of(module, batch)[0]
        except Exception as error:  # anybody's forward may want anything
            return f"{call} raises {type(error).__name__}"
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:-1] != (len(y),):
            return f"{call} gives {describe(output)}, not logits of shape (N, C)"
        if len(y) == 0 or int(y.min()) < 0 or int(y.max()) >= output.shape[1]:
            return f"labels do not lie in [0, {output.shape[1]})"
        try:
            loss = loss_of(_compat.training_step_of(module)(batch, 0))
        except Exception as error:
            return f"training_step raises {type(error).__name__} in eval mode"
        expected = cross_entropy(output.float(), y.long())
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        return "training_step returns no loss"
    if not torch.isclose(loss.float().reshape(()), expected, rtol=1e-4, atol=1e-7, equal_nan=True):
        return f"the loss of training_step is {float(loss):.5g}, cross_entropy({call}, y) is {float(expected):.5g}"
    return ""


def logits_of(module: Any, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Logits and labels, where :func:`why_no_logits` found nothing against it."""
    pair = inputs_and_labels(batch)
    return (module(pair[0]), pair[1]) if pair is not None else default_outputs(module, batch)


def outputs_and_targets(module: Any, batch: Any) -> tuple[Tensor, Tensor | None]:
    """``module(x)`` and whatever stands beside x: what a likelihood without integer labels is taken of.

    Raises:
        InputError: For a batch without an obvious x.
    """
    x = inputs_of(batch)
    if x is None and isinstance(batch, Mapping):
        return default_outputs(module, batch)
    if x is None:
        raise InputError(
            f"a batch of type {type(batch).__name__!r} with no obvious inputs",
            "(inputs, targets)",
            "give logits_fn=lambda module, batch: (outputs, targets)",
        )
    if isinstance(batch, Mapping):
        beside = [batch[name] for name in LABEL_NAMES if name in batch]
    else:
        beside = list(batch[1:2]) if isinstance(batch, tuple | list) else []
    return module(x), beside[0] if beside and isinstance(beside[0], Tensor) else None


class TrainingStepLoss:
    """``(module, batch of one) -> loss`` through the module's own ``training_step``.

    What is returned is not the loss itself but the linear function of the parameters that has its gradient, because
    under manual optimization there is no loss, only gradients that the optimizers would have stepped with.

    A batch of one that crashes or has no finite loss (``squeeze``, batch statistics) is given as two copies of the
    sample, which leaves a mean loss as it is. A module whose ``forward`` gives something else in eval mode gets its
    training mode back, torch's own layers (dropout, batch norm) excepted.

    Raises:
        InputError: If none of these works.
    """

    #: (training mode, two copies), in the order of trying; what works is tried first from then on.
    WAYS = ((False, False), (False, True), (True, False), (True, True))

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
        self.ways = list(self.WAYS)
        self.calls = 0

    def __call__(self, module: Any, batch: Any) -> Tensor:
        """The loss of one sample."""
        # every sample is another batch to modules that alternate between networks
        self.calls += 1
        whole = batch[0] if isinstance(batch, list) and len(batch) == 1 and isinstance(batch[0], Whole) else None
        pair = whole.pair if whole is not None else lambda: select(batch, torch.tensor([0, 0]))
        single = whole.batch if whole is not None else batch
        problem: Exception | None = None
        not_finite: Tensor | None = None
        for way in tuple(self.ways):
            training, doubled = way
            if doubled and pair is None:
                continue
            try:
                with _training(module) if training else contextlib.nullcontext():
                    loss = self._loss(pair() if doubled and pair is not None else single)
            except Exception as error:  # anybody's training_step may raise anything
                problem = problem or error
                continue
            if loss.isfinite().all():
                self.ways.sort(key=lambda other: other != way)
                return loss
            not_finite = loss
        if not_finite is not None:
            return not_finite  # bad weights or data: the result is refused with that reason
        raise InputError(
            f"{type(module).__name__}.training_step on one sample raised {type(problem).__name__}: {problem}",
            "a training_step that works on a batch of one or two samples",
            "give logits_fn=lambda module, batch: (logits, labels), or loss_fn=lambda module, batch: loss",
        ) from problem

    def _loss(self, batch: Any) -> Tensor:
        """A function linear in the parameters, with the gradients of this batch."""
        if self.recorder is not None:
            recorded = self.recorder(lambda: self.step(batch, self.calls - 1))
            gradients = [recorded.get(id(p)) for p in self.parameters]
        else:
            loss = loss_of(self.step(batch, self.calls - 1))
            gradients = [None] * len(self.parameters)  # a step that was skipped has no gradient
            if loss is not None:
                # already here, because some shapes crash in the backward pass only
                gradients = list(torch.autograd.grad(loss, self.parameters, allow_unused=True))
        terms = [
            (p * (g.to_dense() if g.is_sparse else g)).sum()
            for p, g in zip(self.parameters, gradients, strict=True)
            if g is not None
        ]
        return torch.stack(terms).sum() if terms else self.parameters[0].sum() * 0


@contextlib.contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """Training mode for everything but torch's own layers."""
    flags = [(part, part.training) for part in module.modules()]
    for part, _ in flags:
        part.training = not type(part).__module__.startswith("torch.nn.")
    try:
        yield
    finally:
        for part, flag in flags:
            part.training = flag


def describe(value: Any) -> str:
    """Shape and dtype of a tensor, type of anything else."""
    return f"{tuple(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
