"""Nothing of a module is changed by a pass over data: its own lists, counters, buffers and metrics are put back."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

#: nn.Module's own registries; what they hold is kept through the submodules, buffers and parameters themselves.
_REGISTRIES = {"_parameters", "_buffers", "_modules"}


@contextlib.contextmanager
def kept_state(module: nn.Module) -> Iterator[None]:
    """Put back, after the block, what code of the module may have changed.

    Restored are buffers, and every plain attribute of every submodule: lists, dicts and sets get their old content
    (so a list that grows with every ``training_step`` does not), tensors their old values, anything else its old
    value. States of torchmetrics are such attributes; metrics that hide in a list or dict are found too. The cost is
    a copy of the buffers.
    """
    parts = list(module.modules())
    known = {id(part) for part in parts}
    for part in tuple(parts):
        for value in vars(part).values():
            items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
            hidden = [item for item in items if isinstance(item, nn.Module) and id(item) not in known]
            parts += [inner for item in hidden for inner in item.modules()]
            known |= {id(item) for item in hidden}
    before = [_attributes(part) for part in parts]
    buffers = [(buffer, buffer.detach().clone()) for part in parts for buffer in part.buffers(recurse=False)]
    registered = [{name: dict(vars(part)[name]) for name in _REGISTRIES if name in vars(part)} for part in parts]
    try:
        yield
    finally:
        for part, attributes, registries in zip(parts, before, registered, strict=True):
            for name in [name for name in vars(part) if name not in attributes and name not in _REGISTRIES]:
                del vars(part)[name]
            for name, (value, content) in attributes.items():
                vars(part)[name] = _restored(value, content)
            for name, content in registries.items():
                # a buffer that was assigned anew is another tensor by now
                vars(part)[name].clear()
                vars(part)[name].update(content)
        with torch.no_grad():
            for buffer, content in buffers:
                buffer.copy_(content)


def _attributes(part: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Name -> (value, copy of its content); the copy of an object that is neither container nor tensor is None."""
    return {name: (value, _content(value)) for name, value in vars(part).items() if name not in _REGISTRIES}


def _content(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None if value.requires_grad or isinstance(value, nn.Parameter) else value.clone()
    if type(value) is list:
        # what stands in the list may be changed too: the running sums of a metric
        return [(item, _content(item)) if isinstance(item, Tensor) else (item, None) for item in value]
    if isinstance(value, dict | set):
        return value.copy()
    return None


def _restored(value: Any, content: Any) -> Any:
    if content is None:
        return value
    if isinstance(value, Tensor):
        if value.is_inference():  # of a Trainer's evaluation; nothing outside of one can have changed it
            return value
        with torch.no_grad():
            return value.copy_(content)
    if isinstance(value, list):
        value[:] = [_restored(item, copy) for item, copy in content]
        return value
    value.clear()
    value.update(content)
    return value
