"""The logits of a training step, without a second forward pass."""

from typing import Any

from torch import Tensor

from lightning_cl.errors import InputError


class HeadOutput:
    """Keeps what ``module.head`` gives when it is called first in a training step: raw logits, with their graph.

    A second pass would update batch statistics and draw dropout twice. Call :meth:`arm` before each step.
    """

    def __init__(self) -> None:
        self._handle: Any = None
        self._armed = False
        self._logits: Tensor | None = None

    def attach(self, module: Any) -> None:
        """Listen to the head; does nothing the second time."""
        if self._handle is None:
            self._handle = module.head.register_forward_hook(self._hook)

    def detach(self) -> None:
        """Leave the head as it was."""
        if self._handle is not None:
            self._handle.remove()
        self._handle, self._armed, self._logits = None, False, None

    def arm(self) -> None:
        """The next output is kept."""
        self._armed, self._logits = True, None

    def _hook(self, head: Any, inputs: Any, output: Tensor) -> None:
        if self._armed:
            self._armed, self._logits = False, output

    def take(self, module: Any, method: str) -> Tensor:
        """The logits of this step; once.

        Raises:
            InputError: If the head was not called.
        """
        logits, self._logits = self._logits, None
        if logits is None:
            raise InputError(
                f"a training step of {type(module).__name__} in which {method} saw no output of its head",
                "training_step to call head once for each step of the optimizer",
                "compile the module before fit, if at all, and use an optimizer that calls its closure once",
            )
        return logits

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeadOutput":
        # a copy of the module (weight averaging) has this hook, and nobody who asks it
        return HeadOutput()
