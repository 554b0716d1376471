"""One shared wrapper of a module's ``training_step``, for every callback that needs a data-dependent loss."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torchmetrics import Metric

from lightning_cl import _compat
from lightning_cl.callbacks._patch import InstancePatch
from lightning_cl.errors import InputError


class Listener(Protocol):
    """What a callback gives to :meth:`TrainingStepHub.attach`."""

    def __call__(self, call: Callable[[Any], Tensor | None], batch: Any, batch_idx: int, output: Any) -> Any:
        """Return the training step's output, changed or not.

        ``call(other_batch)`` runs the user's own ``training_step`` on another batch, without logging and without
        touching the state of torchmetrics, and returns its loss (None if it skipped).
        """


def loss_of(output: Any) -> Tensor | None:
    """The loss in a training step's output: a tensor, a mapping with "loss", or None."""
    return output.get("loss") if isinstance(output, Mapping) else output


def with_loss(output: Any, loss: Tensor) -> Any:
    """The output with another loss; a mapping is copied, and a step that skipped (None) goes on skipping."""
    if output is None:
        return None
    return {**output, "loss": loss} if isinstance(output, Mapping) else loss


class _Attached(NamedTuple):
    order: int
    name: str
    listener: Listener
    around: Callable[[], AbstractContextManager[Any]] | None


class TrainingStepHub:
    """The wrapper: calls the user's ``training_step``, then every listener in order.

    There is one per module, whatever the number of callbacks: two wrappers, each with its own idea of the signature,
    break ``training_step(self, batch)``. It stands on the instance, where DDP's forward redirection and
    ``torch.compile(module)`` find it, and shows Lightning the signature of the original. Attach in ``setup("fit")``,
    detach in ``teardown`` and ``on_exception``; what is detached last restores the module. Calls from elsewhere (a
    ``validation_step`` that shares the code, an importance pass) go straight to the user's function.

    Example::

        hub = TrainingStepHub.attach(module, self._extra, name="LwF")   # in setup
        hub.require_fired()                                             # in on_train_batch_end
        hub.detach(self._extra)                                         # in teardown, on_exception
    """

    def __init__(self, module: Any) -> None:
        self.module = module
        self.fired = 0
        self._listeners: list[_Attached] = []
        self._metrics = [m for m in module.modules() if isinstance(m, Metric)]
        self._patch = InstancePatch(module, "training_step", self._training_step, hub=self)

    @classmethod
    def attach(
        cls,
        module: Any,
        listener: Listener,
        *,
        name: str,
        order: int = 0,
        around: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> "TrainingStepHub":
        """Add a listener to the module's hub, which is installed if it is the first.

        Args:
            module: The (unwrapped) module.
            listener: See :class:`Listener`. Attaching it again does nothing.
            name: The callback's name, for messages.
            order: Lower is called earlier; equal ones in the order of attaching.
            around: Makes a context in which the user's own ``training_step`` runs on the current batch; that of the
                lowest order is entered first, and is the outermost.

        Raises:
            InputError: Under manual optimization, or if ``training_step`` takes ``dataloader_iter``: there is no loss,
                or no batch, to work with.
        """
        if not getattr(module, "automatic_optimization", True):
            raise InputError(
                f"{name} on {type(module).__name__} with automatic_optimization=False",
                "automatic optimization, where training_step returns the loss",
                "return the loss from training_step, or use a method that needs none: EWC, Replay(mode='mixed')",
            )
        if "dataloader_iter" in inspect.signature(module.training_step).parameters:
            raise InputError(
                f"{name} on {type(module).__name__} with training_step(dataloader_iter)",
                "training_step(batch, batch_idx)",
                "let Lightning fetch the batches, or use Replay(mode='mixed')",
            )
        hub = getattr(module.__dict__.get("training_step"), "hub", None) or cls(module)
        if listener not in [entry.listener for entry in hub._listeners]:
            hub._listeners.append(_Attached(order, name, listener, around))
            hub._listeners.sort(key=lambda entry: entry.order)
        return hub

    def detach(self, listener: Listener) -> None:
        """Remove a listener, and the wrapper after the last one. Does nothing the second time."""
        self._listeners = [entry for entry in self._listeners if entry.listener != listener]
        if not self._listeners:
            self._patch.remove()

    def require_fired(self) -> None:
        """Raise if a training batch is over and the wrapper was not called; for ``on_train_batch_end``.

        Raises:
            InputError: With the names of the callbacks that would do nothing.
        """
        if self.fired == 0:
            names = ", ".join(entry.name for entry in self._listeners) or "its callbacks"
            raise InputError(
                f"a training step of {type(self.module).__name__} that went past {names}",
                "the shared wrapper of training_step to be called at every step",
                "something replaced module.training_step after setup (torch.compile, another tool): do that before fit",
            )

    def _training_step(self, *args: Any, **kwargs: Any) -> Any:
        # set by Lightning around each hook; without it (a bare call in a test) the caller wants the training step
        if getattr(self.module, "_current_fx_name", None) not in (None, "training_step") or not args:
            return self._patch.original(*args, **kwargs)
        with ExitStack() as stack:
            for entry in self._listeners:
                if entry.around is not None:
                    stack.enter_context(entry.around())
            output = self._patch.original(*args, **kwargs)
        self.fired += 1

        def call(other: Any) -> Tensor | None:
            with self._silent():
                return loss_of(self._patch.original(other, *args[1:], **kwargs))

        batch_idx = args[1] if len(args) > 1 else kwargs.get("batch_idx", 0)
        for entry in tuple(self._listeners):
            output = entry.listener(call, args[0], batch_idx, output)
        return output

    @contextmanager
    def _silent(self) -> Iterator[None]:
        """No logging, and metrics as they were."""
        before = [{name: _copy(value) for name, value in _state(metric).items()} for metric in self._metrics]
        try:
            with _compat.muted_logging(self.module):
                yield
        finally:
            for metric, state in zip(self._metrics, before, strict=True):
                metric.__dict__.update(state)


def _state(metric: Metric) -> dict[str, Any]:
    """What a metric's ``update``, ``forward`` and ``compute`` change."""
    names = (*metric._defaults, "_update_count", "_computed", "_forward_cache")
    return {name: metric.__dict__[name] for name in names if name in metric.__dict__}


def _copy(value: Any) -> Any:
    # states are summed in place
    return value.clone() if isinstance(value, Tensor) else list(value) if isinstance(value, list) else value
