"""Modules that ``fully_shard`` (FSDP2) has split, and whole again: every touch of torch's private side of them."""

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl._sharded_tensors import is_sharded, local
from lightning_cl.errors import InputError

# what fully_shard leaves on modules; the mesh is Lightning's, stands on the LightningModule, and cannot be copied
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params", "_device_mesh")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")


def has_shards(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has been called on some part of the module."""
    return bool(_units(module))


def reshard(module: nn.Module) -> None:
    """Free the whole parameters that a forward pass without a backward has left."""
    for unit in _units(module):
        unit.reshard()


@contextmanager
def swapped_shards(pairs: list[tuple[Tensor, Tensor]], module: nn.Module) -> Iterator[None]:
    """Inside the block the first of each pair has the value of the second, and the other way round."""
    reshard(module)
    _swap(pairs)
    try:
        yield
    finally:
        reshard(module)
        _swap(pairs)
        if pairs and pairs[0][0].device.type != "cpu":
            # the backward pass gathers on a stream of its own, which waits for optimizer steps only
            torch.accelerator.current_stream().synchronize()


@torch.no_grad()
def _swap(pairs: list[tuple[Tensor, Tensor]]) -> None:
    for one, other in pairs:
        kept = local(one).clone()
        local(one).copy_(local(other))
        local(other).copy_(kept)


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """Inside the block the module is an ordinary one, with whole parameters; what is done to their values is lost.

    Every process holds the whole model meanwhile; all call it alike, and nothing inside waits for the others.
    """
    if not has_shards(module):
        yield
        return
    detached = _Detached(module)
    try:
        yield
    finally:
        detached.attach()


def make_whole(module: nn.Module) -> None:
    """Undo every ``fully_shard`` of a module; its parameters are new ones. Nothing is done to one without."""
    if has_shards(module):
        _Detached(module).forget()


class _Detached:
    """A module taken out of FSDP2's hands, and what is needed to hand it back."""

    def __init__(self, module: nn.Module) -> None:
        reshard(module)
        self.parts, self.units = list(module.modules()), _units(module)
        self.states = [unit._get_fsdp_state() for unit in self.units]
        if any(len(state._modules) > 1 for state in self.states):
            raise InputError("fully_shard([several modules])", "units of one module", "call it for each of them")
        self.classes = [type(unit) for unit in self.units]
        self.hooks = [(unit, name, OrderedDict(getattr(unit, name))) for unit in self.units for name in _HOOKS]
        self.own = [{s._pre_forward_hook_handle.id, s._post_forward_hook_handle.id} for s in self.states]
        self.attributes = [(part, name, part.__dict__.pop(name)) for part in self.parts for name in _marks_of(part)]
        for unit, ids, kind in zip(self.units, self.own, self.classes, strict=True):
            for name in _HOOKS:
                for number in ids:
                    getattr(unit, name).pop(number, None)
            unit.__class__ = kind.__mro__[2]
        self.parameters: list[tuple[nn.Module, str, Tensor]] = []
        self._fill()

    @torch.no_grad()
    def _fill(self) -> None:
        full: dict[int, nn.Parameter] = {}
        for part in self.parts:
            for name, parameter in part._parameters.items():
                if parameter is None or not is_sharded(parameter):
                    continue
                if id(parameter) not in full:
                    value = parameter.full_tensor().clone()  # type: ignore[attr-defined]
                    full[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
                self.parameters.append((part, name, parameter))
                part._parameters[name] = full[id(parameter)]

    def attach(self) -> None:
        """As it was, with the hooks that have come and gone meanwhile."""
        for part, name, parameter in self.parameters:
            part._parameters[name] = parameter  # type: ignore[assignment]
        for unit, kind in zip(self.units, self.classes, strict=True):
            unit.__class__ = kind
        for part, name, value in self.attributes:
            part.__dict__[name] = value
        own = set().union(*self.own)  # numbers of hooks are unique
        for unit, name, before in self.hooks:
            now = getattr(unit, name)
            kept = [(key, value) for key, value in before.items() if key in now or key in own]
            added = [(key, value) for key, value in now.items() if key not in before]
            now.clear()
            now.update([*kept, *added])

    def forget(self) -> None:
        """It stays as it is."""
        from torch.distributed._composable_state import _module_state_mapping

        for part, name, value in self.attributes:
            if name == "_device_mesh":
                part.__dict__[name] = value
        for unit, state in zip(self.units, self.states, strict=True):
            _module_state_mapping.pop(unit, None)
            for group in state._fsdp_param_groups:
                for handles in (
                    group._module_to_pre_save_state_dict_hook_handle,
                    group._module_to_pre_load_state_dict_hook_handle,
                ):
                    for handle in handles.values():
                        handle.remove()


def _units(module: nn.Module) -> list[Any]:
    loaded = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(loaded, "FSDPModule", None)
    return [part for part in module.modules() if isinstance(part, kind)] if kind is not None else []


def _marks_of(part: nn.Module) -> list[str]:
    from torch.distributed._composable.contract import REGISTRY_KEY, STATE_KEY

    return [name for name in (STATE_KEY, REGISTRY_KEY, *_MARKS) if name in part.__dict__]
