"""Inputs and outputs of layers, recorded during one forward pass."""

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass
class Call:
    """One call of a layer: input without graph, output with it."""

    inputs: Tensor
    outputs: Tensor


class Capture:
    """Records the calls of ``layers`` inside a ``with`` block; hooks are gone afterwards, also after an exception."""

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        self.calls: dict[nn.Module, list[Call]] = {layer: [] for layer in layers}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Capture":
        # first in line, so that the raw output is seen when others replace it
        self._handles = [
            layer.register_forward_hook(self._record, prepend=True, with_kwargs=True) for layer in self.calls
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _record(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        inputs = args[0] if args else kwargs["input"]
        self.calls[layer].append(Call(inputs.detach(), output))
        # what follows may change its input in place (ReLU(inplace=True)); gradients are asked for at the original
        return output.clone()

    def once(self) -> dict[nn.Module, Call]:
        """The layers that were called exactly once."""
        return {layer: calls[0] for layer, calls in self.calls.items() if len(calls) == 1}
