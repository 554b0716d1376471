"""The logits and labels behind the loss of anybody's ``training_step``."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.errors import InputError

LogitsFn = Callable[[Any, Any], tuple[Tensor, Tensor]]
Change = Callable[[Tensor, Tensor], Tensor]
LOG_SOFTMAX = (F.log_softmax, torch.log_softmax, Tensor.log_softmax)


class StepOutputs:
    """Logits (with their graph) and labels of a ``training_step``, whosever module it is.

    The way to them is, in this order: ``logits_fn``; the module's own ``all_logits(batch) -> (logits, labels)``, as
    ``training_step`` calls it; the input of the step's one ``cross_entropy`` (``F.cross_entropy``,
    ``CrossEntropyLoss``, ``log_softmax`` with ``nll_loss``, a Hugging Face model that computes its loss itself), seen
    while the step runs.
    The step's own logits are used, not computed once more, except by ``logits_fn``, which is one more forward pass.
    A step, or parts of it, may be compiled by ``torch.compile``.

    Args:
        name: Of the callback, for messages.
        logits_fn: ``(module, batch) -> (logits (N, C), labels (N,))``.
        change: ``(logits, labels) -> logits`` in place of those that ``cross_entropy`` is given, in the step on the
            current batch. With it, the way is always that of ``cross_entropy``, or ``logits_fn`` (unchanged).

    Example::

        outputs.attach(module)                                                       # in setup
        TrainingStepHub.attach(module, listener, name="X", around=outputs.recording)
        logits, labels = outputs.current(module, batch)                              # in the listener
        logits = outputs.of(call, module, other_batch)                               # in the listener
        outputs.detach()                                                             # in teardown
    """

    def __init__(self, name: str, logits_fn: LogitsFn | None = None, change: Change | None = None) -> None:
        self.name, self.logits_fn = name, logits_fn
        self._step, self._plain = _Capture(change), _Capture()
        self._offered: list[tuple[Tensor, Tensor]] = []
        self._patch: InstancePatch | None = None
        self._listening = False
        self._reads_cross_entropy = change is not None
        # the teacher's step has to stop at the call that the model's own step was seen to learn from
        self._number = 0

    def attach(self, module: Any) -> None:
        """Listen to the module's own ``all_logits``, if it has one."""
        if self._offers(module) and self._patch is None:
            self._patch = InstancePatch(module, "all_logits", self._all_logits)

    def detach(self) -> None:
        """Leave the module as it was. Does nothing the second time."""
        if self._patch is not None and not self._patch.remove():
            # another one stands on top and will go on calling this one
            self._patch.function = self._patch.original
        self._patch = None
        self._forget()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A context for the user's own step on the current batch."""
        with self._recording(self._step):
            yield

    def current(self, module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        """Logits and labels of the step that ran last in :meth:`recording`.

        Raises:
            InputError: If there were none, or several.
        """
        if self.logits_fn is not None:
            return self._given(module, batch)
        found = self._found(module, self._step)
        self._forget()
        return found

    def of(self, call: Callable[[Any], Tensor | None], module: Any, batch: Any) -> Tensor | None:
        """Logits of another batch, with their graph; ``call`` is the hub's. None if the step skipped it."""
        if self.logits_fn is not None or self._offers(module):
            return self.logits_only(call, module, batch)
        # to its end, unlike below: leaving a compiled step in the middle would undo its compilation
        with self._recording(self._plain):
            loss = call(batch)
        logits = None if loss is None else self._found(module, self._plain)[0]
        self._forget()
        return logits

    def logits_only(self, call: Callable[[Any], Any], module: Any, batch: Any) -> Tensor:
        """Logits of a batch without a loss: the step is left as soon as they are known.

        ``call`` runs the user's own step. Labels that the logits have no column for are no error.
        """
        if self.logits_fn is not None:
            return self._given(module, batch)[0]
        if self._offers(module):
            return module.all_logits(batch)[0]
        stopping = _Capture(stop_at=self._number)
        try:
            with stopping:
                call(batch)
        except _Known:
            return stopping.found[-1][0]
        raise self._nothing(module)

    def _offers(self, module: Any) -> bool:
        asked = self.logits_fn is None and not self._reads_cross_entropy
        return asked and callable(getattr(module, "all_logits", None))

    def _all_logits(self, batch: Any) -> tuple[Tensor, Tensor]:
        assert self._patch is not None
        logits, labels = self._patch.original(batch)
        if self._listening:
            self._offered.append((logits, labels))
        return logits, labels

    @contextmanager
    def _recording(self, capture: "_Capture") -> Iterator[None]:
        self._forget()
        if self.logits_fn is not None:
            yield
            return
        self._listening = True
        try:
            if self._patch is not None:
                yield
            else:
                with capture:
                    yield
        except BaseException:
            self._forget()
            raise
        finally:
            self._listening = False

    def _found(self, module: Any, capture: "_Capture") -> tuple[Tensor, Tensor]:
        learnt = [
            (i, logits, labels)
            for i, (logits, labels) in enumerate(capture.found)
            if logits.requires_grad or not torch.is_grad_enabled()
        ]
        found = self._offered or [(logits, labels) for _, logits, labels in learnt]
        if len(found) > 1:
            raise InputError(
                f"{len(found)} losses with logits in one training_step of {type(module).__name__} for {self.name}",
                "one cross_entropy",
                "give logits_fn=lambda module, batch: (logits, labels)",
            )
        if not found:
            raise self._nothing(module)
        if learnt:
            self._number = learnt[0][0]
        return found[0]

    def _given(self, module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        assert self.logits_fn is not None
        given = self.logits_fn(module, batch)
        if not (isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(x, Tensor) for x in given)):
            raise InputError(
                f"logits_fn that returned a {type(given).__name__}", "(logits, labels)", "return two tensors, a pair"
            )
        return given[0], given[1]

    def _nothing(self, module: Any) -> InputError:
        asked = "its own all_logits(batch)" if self._offers(module) else "cross_entropy, or of log_softmax and nll_loss"
        return InputError(
            f"a training_step of {type(module).__name__} that showed no logits to {self.name}",
            f"a call of {asked}",
            "give logits_fn=lambda module, batch: (logits, labels)",
        )

    def _forget(self) -> None:
        self._offered.clear()
        self._step.clear()
        self._plain.clear()


class _Known(BaseException):
    """The logits are known; passes every ``except Exception`` of the user's step."""


class _Capture(TorchFunctionMode):
    """Sees what cross-entropies are computed of inside a ``with`` block."""

    def __init__(self, change: Change | None = None, stop_at: int | None = None) -> None:
        super().__init__()
        self.change, self.stop_at = change, stop_at
        self.found: list[tuple[Tensor, Tensor]] = []
        self._softened: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        self.found.clear()
        self._softened.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in LOG_SOFTMAX:
            output = func(*args, **kwargs)
            self._softened.append((output, args[0] if args else kwargs["input"]))
            return output
        if func is not F.cross_entropy and func is not F.nll_loss:
            return func(*args, **kwargs)
        given = dict(zip(("input", "target"), args, strict=False)) | kwargs
        logits, labels = given.pop("input"), given.pop("target")
        if func is F.nll_loss:
            # log-probabilities are logits too, but others than those they were computed of
            logits = next((of for output, of in self._softened if output is logits), logits)
        self.found.append((logits, labels))
        if self.stop_at is not None and len(self.found) > self.stop_at:
            raise _Known
        if self.change is None:
            return func(*args, **kwargs)
        if given.get("label_smoothing"):
            raise InputError(
                f"label_smoothing={given['label_smoothing']!r} in a loss over a part of the classes",
                "0: smoothing would spread over the classes that are left out",
                "leave label_smoothing out",
            )
        changed = self.change(logits, labels)
        if func is F.nll_loss:
            changed = F.log_softmax(changed, 1)
        return func(changed, labels, *args[2:], **given)
