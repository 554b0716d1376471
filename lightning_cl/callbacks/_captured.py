"""What submodules put out while a training step runs."""

from typing import Any

from torch import Tensor, nn


class Captured:
    """The first output of each of some submodules between :meth:`start` and :meth:`stop`.

    By forward hooks, which are attached in ``setup`` (one that is added after ``torch.compile`` never fires). Outputs
    keep their graph: nothing is computed twice.
    """

    def __init__(self) -> None:
        self.found: dict[str, Tensor] | None = None
        self._handles: list[Any] = []

    def attach(self, watched: dict[str, nn.Module]) -> None:
        """Listen to these modules from now on, each under its name."""
        self.detach()
        self._handles = [part.register_forward_hook(_Hook(self, name)) for name, part in watched.items()]

    def detach(self) -> None:
        """Take the hooks off, and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.found = [], None

    def start(self) -> None:
        """Forget, and record from now on."""
        self.found = {}

    def stop(self) -> dict[str, Tensor]:
        """What was recorded; nothing is, from now on."""
        found, self.found = self.found or {}, None
        return found


class _Hook:
    """A hook that a deep copy of its module does not have."""

    def __init__(self, captured: Captured | None, name: str) -> None:
        self.captured, self.name = captured, name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.captured is not None and self.captured.found is not None:
            self.captured.found.setdefault(self.name, output)

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Hook":
        return _Hook(None, self.name)
