"""What a freezing schedule costs while a part is frozen, beside the same part frozen by hand; for benchmark.py."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Case = tuple[nn.Module, torch.Tensor, int, list[str], list[nn.Module]]


def freezing(repeats: int, alternating: Callable, row: Callable, step_seconds: Callable) -> list[dict[str, Any]]:
    """Time of a step and bytes that it keeps, for each case."""
    rows = []
    for name, (network, x, steps, thawed, frozen) in _cases().items():
        ours = functools.partial(_measured, step_seconds, network, x, steps, thawed, None)
        by_hand = functools.partial(_measured, step_seconds, network, x, steps, None, frozen)
        text = "the same part frozen by hand"
        seconds = alternating(lambda f=ours: f()[0], lambda f=by_hand: f()[0], repeats)
        rows.append(row(f"step with a frozen part: {name}", *seconds, "CPU s/step", text))
        kept = [ours()[1]], [by_hand()[1]]
        rows.append(row(f"tensors kept for backward, and gradients: {name}", *kept, "bytes", text))
    return rows


def _cases() -> dict[str, Case]:
    import torchvision

    layers = [nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10)]
    resnet = torchvision.models.resnet18(num_classes=10)
    early = [module for name, module in resnet.named_children() if name not in ("layer4", "fc")]
    body = [*early, resnet.layer4]
    pixels, image = torch.rand(128, 784), torch.rand(16, 3, 32, 32)
    return {
        "MLP 784-400-400-10, all but the head": (nn.Sequential(*layers), pixels, 300, ["head"], layers[:4]),
        "ResNet-18, all but the head": (resnet, image, 20, ["head"], body),
        "ResNet-18, all but the last stage": (resnet, image, 20, ["re:layer4$", "head"], early),
    }


def _measured(
    step_seconds: Callable, network: nn.Module, x: torch.Tensor, steps: int, thawed: Any, frozen: Any
) -> tuple[float, float]:
    """Seconds of a step, and bytes; ``thawed`` for our schedule, ``frozen`` for modules frozen by hand."""
    from lightning_cl import FreezingSchedule

    network.requires_grad_(True).train()
    for module in frozen or []:
        module.requires_grad_(False).eval()
    schedule = [FreezingSchedule(phases=[{"thaw": thawed}], table=False)] if thawed else []
    for parameter in network.parameters():
        parameter.grad = None
    with _Kept() as kept:
        step_seconds(network, x, 2, schedule)
    gradients = sum(p.grad.nbytes for p in network.parameters() if p.grad is not None)
    return step_seconds(network, x, steps, schedule), kept.most + gradients


class _Kept:
    """Most bytes that were kept for one backward pass."""

    def __init__(self) -> None:
        self.most = self._now = 0
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    def __enter__(self) -> "_Kept":
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        self._now += tensor.nbytes
        self.most = max(self.most, self._now)
        return tensor

    def _unpack(self, tensor: torch.Tensor) -> torch.Tensor:
        self._now -= tensor.nbytes
        return tensor
