"""A model as it was: its parameters and buffers, kept outside of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl._compat_fsdp2 import reshard, swapped_shards
from lightning_cl._sharded_tensors import is_sharded, local, shard_like
from lightning_cl.errors import InputError


class Teacher:
    """The tensors of a module at some time, with which the module itself computes for a moment.

    Nothing of it is in the module: no state-dict entry, no DDP broadcast, no second architecture to rebuild. A head
    that has grown since computes with the rows that it had; a layer that is new computes as it is now.

    Of sharded parameters every process keeps its part: it trades places with the module's for the moment, so that a
    layer is whole only while it computes. Rows that the head has gained since answer 0 there.

    State: one copy of the parameters and buffers.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def __bool__(self) -> bool:
        """Whether there is one."""
        return bool(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes held; of a sharded teacher those of this process."""
        return sum(local(value).nbytes for value in self.tensors.values())

    def take(self, module: nn.Module) -> None:
        """Copy the module as it is now."""
        reshard(module)
        self.tensors = {name: value.detach().clone() for name, value, _, _ in _places(module)}

    @contextmanager
    def in_place_of(self, module: nn.Module) -> Iterator[None]:
        """Inside the block the module computes as the teacher: in eval mode, without gradients.

        Raises:
            InputError: If the module has lost a parameter.
        """
        reshard(module)
        places = {name: (values, key) for name, _, values, key in _places(module)}
        gone = sorted(self.tensors.keys() - places.keys())
        if gone:
            raise InputError(
                f"a teacher with {', '.join(map(repr, gone[:3]))}, which {type(module).__name__} no longer has",
                "the same model in every task; its head may grow",
                "keep the names of layers, or start without the old state",
            )
        self._follow(places)
        now = {name: places[name][0][places[name][1]] for name in self.tensors}
        split = {id(now[name]): (now[name], value) for name, value in self.tensors.items() if is_sharded(now[name])}
        plain = {name: value for name, value in self.tensors.items() if id(now[name]) not in split}
        before = [(*places[name], now[name]) for name in plain]
        try:
            for name, value in plain.items():
                values, key = places[name]
                values[key] = value
            with swapped_shards([*split.values()], module), torch.no_grad(), _compat.evaluating(module):
                yield
        finally:
            for values, key, value in before:
                values[key] = value

    def _follow(self, places: dict[str, Any]) -> None:
        """Move to the module's device, and be sharded as it is."""
        for name, value in self.tensors.items():
            values, key = places[name]
            if is_sharded(values[key]) or is_sharded(value):
                self.tensors[name] = shard_like(value, values[key])
            elif value.device != values[key].device:
                self.tensors[name] = value.to(values[key].device)


def _places(module: nn.Module) -> Iterator[tuple[str, Tensor, dict[str, Any], str]]:
    """Name, tensor, and where it stands, of every parameter and buffer under each of its names."""
    for path, part in module.named_modules(remove_duplicate=False):
        for values in (part._parameters, part._buffers):
            for key, value in values.items():
                if value is not None:
                    yield f"{path}.{key}" if path else key, value, values, key
