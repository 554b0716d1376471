"""Parameters that are split over processes (FSDP2, ``DTensor``): every touch of torch's private side of them."""

import os
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl import _compat
from lightning_cl.errors import InputError
from lightning_cl.functional.penalty import pad_to

FSDP2 = "ModelParallelStrategy"
# what fully_shard leaves on modules; the mesh is Lightning's, stands on the LightningModule, and cannot be copied
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params", "_device_mesh")
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs")


def refuse_sharded(trainer: Any, who: str, *, supported: bool = False) -> bool:
    """Whether the trainer's strategy shards parameters; one that ``who`` does not support is refused.

    Raises:
        InputError: With the strategy's name.
    """
    strategy = _compat.strategy_name(trainer)
    if strategy not in _compat.SHARDED:
        return False
    if not supported:
        raise InputError(
            f"strategy {strategy!r} with {who}",
            "a strategy that keeps whole parameters",
            "use strategy='auto' or 'ddp'",
        )
    if strategy != FSDP2:
        raise InputError(
            f"strategy {strategy!r} with {who}",
            "whole parameters, or FSDP2",
            "use strategy='ddp', or ModelParallelStrategy (docs/cluster.md, Sharded models)",
        )
    split = trainer.strategy.device_mesh["tensor_parallel"].size()
    if split > 1:
        raise InputError(
            f"ModelParallelStrategy with tensor_parallel_size={split} and {who}",
            "processes that share data, not layers",
            f"set data_parallel_size={trainer.world_size} tensor_parallel_size=1",
        )
    return True


def writes_folders(trainer: Any) -> bool:
    """Whether a checkpoint of the strategy is a folder with a file for each process."""
    return _compat.strategy_name(trainer) == FSDP2 and trainer.strategy._save_distributed_checkpoint


def repair_loading(trainer: Any) -> None:
    """Let a sharded fit go on with optimizers that keep nothing (SGD without momentum), at which Lightning fails."""
    strategy = trainer.strategy
    if _compat.strategy_name(trainer) != FSDP2 or "load_checkpoint" in vars(strategy):
        return
    load = strategy.load_checkpoint

    def load_checkpoint(path: Any, weights_only: bool | None = None) -> Any:
        if not os.path.isfile(path):
            return load(path, weights_only=weights_only)
        try:  # only to look; what else is in the file is for Lightning to read, or to refuse
            saved = torch.load(path, mmap=True, map_location="cpu", weights_only=True).get("optimizer_states", [])
        except Exception:
            return load(path, weights_only=weights_only)
        if not saved or any(state["state"] for state in saved):
            return load(path, weights_only=weights_only)
        optimizers, strategy.optimizers = strategy.optimizers, []
        try:
            return load(path, weights_only=weights_only)
        finally:
            strategy.optimizers = optimizers
            for optimizer, state in zip(optimizers, saved, strict=True):
                for group, values in zip(optimizer.param_groups, state["param_groups"], strict=True):
                    group.update({key: value for key, value in values.items() if key != "params"})

    strategy.load_checkpoint = load_checkpoint


def refuse_unshared(module: nn.Module) -> None:
    """Refuse trainable parameters that are not sharded although others are: nobody averages their gradients.

    Raises:
        InputError: With their names.
    """
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    lone = [name for name, p in named if not is_sharded(p)]
    if lone and torch.distributed.get_world_size() > 1:
        raise InputError(
            f"parameters {', '.join(lone[:3])} that configure_model has not sharded",
            "every trainable parameter sharded, because nobody averages the gradients of the others",
            "call fully_shard on the modules that hold them",
        )


def is_sharded(tensor: Any) -> bool:
    """Whether a tensor is split over processes."""
    # imported by whoever has made one; it costs a second
    loaded = sys.modules.get("torch.distributed.tensor")
    return loaded is not None and isinstance(tensor, loaded.DTensor)


def has_shards(module: nn.Module) -> bool:
    """Whether ``fully_shard`` has been called on some part of the module."""
    return bool(_units(module))


def local(tensor: Tensor) -> Tensor:
    """This process's part, in the same memory; the tensor itself if it is whole."""
    return tensor.detach().to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole_tensor(tensor: Tensor) -> Tensor:
    """All parts of a split tensor; all processes call it alike."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor padded to the shape of ``like``, on its device, and split as it is; all processes call it alike."""
    if tensor.shape == like.shape and is_sharded(tensor) == is_sharded(like):
        return tensor.to(like.device)
    tensor = pad_to(whole_tensor(tensor).detach().to(like.device), like.shape).contiguous()
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    part = distribute_tensor(tensor, mesh, placements, src_data_rank=None).to_local()
    # a view would hold the whole tensor
    return DTensor.from_local(
        part.clone(), mesh, placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def largest(tensors: Iterable[Tensor]) -> float:
    """The largest value of all, 0 where there is none; all processes call it alike."""
    tensors = list(tensors)
    found = max((float(part.max()) for part in map(local, tensors) if part.numel()), default=0.0)
    if not any(map(is_sharded, tensors)):
        return found
    over_all = torch.tensor(found, device=local(tensors[0]).device)
    torch.distributed.all_reduce(over_all, torch.distributed.ReduceOp.MAX)
    return float(over_all)


def gathered(state: Any) -> Any:
    """A state (mappings of mappings) with whole tensors on the CPU for split ones; all processes call it alike.

    Only the first process, which writes, gets them: the others hold empty ones.
    """
    if is_sharded(state):
        full = state.detach().full_tensor()
        return full.cpu() if is_first() else full.new_empty(0, device="cpu")
    if isinstance(state, Mapping) and holds_shards(state):
        return {key: gathered(value) for key, value in state.items()}
    return state


def holds_shards(state: Any) -> bool:
    """Whether a state (mappings of mappings) holds a split tensor."""
    return any(map(holds_shards, state.values())) if isinstance(state, Mapping) else is_sharded(state)


def is_first() -> bool:
    """Whether this process, of those that have met, writes."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


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
