"""What of an adapted module is trained and what is the frozen base, and how the base stays what it was."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_cl.errors import InputError
from lightning_cl.finetuning._adapter_layers import within

#: the attribute of an adapted module; it holds plain values
RECORD = "lightning_cl_adapters"
#: where a checkpoint without the base says which base it was
BASE_KEY = "lightning_cl_adapters_base"


def record_of(model: nn.Module) -> dict[str, Any] | None:
    """The record of an adapted module: its config, and the names of what is frozen; None for any other module."""
    return vars(model).get(RECORD)


def adapted(model: nn.Module) -> nn.Module:
    """The adapted module: this one, or the only one below it.

    Raises:
        InputError: If there is none, or several.
    """
    found = [part for part in model.modules() if record_of(part) is not None]
    if len(found) != 1:
        raise InputError(
            f"{type(model).__name__} with {len(found)} adapted modules", "one", "call add_adapters(model) first"
        )
    return found[0]


def base_parameters(module: nn.Module) -> set[int]:
    """Ids of the parameters that adapters in the module have frozen, and that nobody may thaw."""
    found: set[int] = set()
    for part in module.modules():
        if (held := record_of(part)) is not None:
            frozen = set(held["frozen"])
            found |= {id(p) for name, p in part.named_parameters(remove_duplicate=False) if name in frozen}
    return found


def note(model: nn.Module, config: dict[str, Any], trained: set[int], were_frozen: Sequence[str]) -> None:
    """Write the record, and keep the base's normalisation statistics.

    Args:
        model: The module, with its adapters.
        config: Plain values from which the adapters are built again.
        trained: Ids of the parameters that are trained, or belong to the head.
        were_frozen: Names of parameters that did not require a gradient before.
    """
    frozen = [name for name, p in model.named_parameters(remove_duplicate=False) if id(p) not in trained]
    for path, part in model.named_modules():
        own = {id(p) for p in part.parameters(recurse=False)}
        # buffers that stand alone may be anything that a training step keeps
        is_base = bool(own) or hasattr(part, "running_mean")
        if is_base and not own & trained and not within(path, config["heads"]):
            buffers = [name for name, _ in part.named_buffers(recurse=False)]
            saved = [name for name in buffers if name not in part._non_persistent_buffers_set]
            frozen += [f"{path}.{name}" if path else name for name in saved]
    setattr(model, RECORD, {"config": config, "frozen": frozen, "were_frozen": list(were_frozen)})
    model.register_load_state_dict_pre_hook(_complete)
    hold_statistics(model)


def forget(model: nn.Module) -> None:
    """Undo :func:`note`."""
    delattr(model, RECORD)
    for hooks, function in (
        (model._load_state_dict_pre_hooks, _complete),
        *((part._forward_pre_hooks, _stay_in_eval) for part in model.modules()),
    ):
        for key in [key for key, hook in hooks.items() if getattr(hook, "hook", hook) is function]:
            del hooks[key]


def hold_statistics(model: nn.Module) -> None:
    """Frozen BatchNorm normalises with its running statistics, whoever calls ``train()``; once is enough."""
    record = record_of(model)
    frozen = set(record["frozen"]) if record else set()
    for path, part in model.named_modules():
        if f"{path}.running_mean" not in frozen or _stay_in_eval in part._forward_pre_hooks.values():
            continue
        part.training = False
        part.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(module: nn.Module, args: Any) -> None:
    """Set at every forward, because ``train()`` of a parent, or a schedule that thaws, may have changed it."""
    if module.training:
        module.training = False


def is_stripped(model: nn.Module, state: Mapping[str, Any], prefix: str = "") -> bool:
    """Whether a state dict holds what was trained and nothing of the base."""
    frozen = (record_of(model) or {}).get("frozen", ())
    return bool(frozen) and bool(state) and not any(prefix + name in state for name in frozen)


def _complete(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Take the base from the module where a state dict has none of it."""
    if record_of(module) and is_stripped(module, state_dict, prefix):
        own = module.state_dict()
        state_dict.update({prefix + name: own[name] for name in record_of(module)["frozen"] if name in own})  # type: ignore[index]


def base_values(model: nn.Module) -> list[float]:
    """One value of each of up to 64 frozen weights: enough to tell one base from another."""
    state, record = model.state_dict(), record_of(model)
    names = [name for name in (record or {}).get("frozen", ()) if name in state]
    weights = [state[name] for name in names if state[name].is_floating_point() and state[name].dim() > 1]
    chosen = weights[:: max(1, len(weights) // 64)][:64]
    return torch.stack([w.detach().flatten()[w.numel() // 2].float() for w in chosen]).tolist() if chosen else []


def check_base(model: nn.Module, values: Sequence[float] | None) -> None:
    """Refuse another base than the one that the adapters were trained on; other precision is no other base.

    Raises:
        InputError: If the values differ by more than a rounding to bfloat16.
    """
    if values is None:
        return
    own = torch.tensor(base_values(model))
    theirs = torch.tensor(list(values))
    if own.shape != theirs.shape or not torch.allclose(own, theirs, rtol=2e-2, atol=1e-4):
        raise InputError(
            f"base weights of {type(model).__name__} that are not those on which the adapters were trained",
            "the same pretrained weights",
            "load them before the adapters; check_base=False of load_adapters takes them as they are",
        )


def split(model: nn.Module) -> dict[str, Tensor]:
    """The entries of the state dict that are not the frozen base."""
    frozen = set((record_of(model) or {})["frozen"])
    return {name: value.detach() for name, value in model.state_dict().items() if name not in frozen}
