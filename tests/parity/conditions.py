"""The conditions that must not change what a method computes: how a Trainer and a plain loop are told of each."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision


@dataclass(frozen=True)
class Condition:
    """Options of a Trainer (made anew for each fit), what the plain loop does, and the agreement that is expected."""

    options: Callable[[], dict[str, Any]] = field(default=lambda: {})
    accumulate: int = 1
    clip: float | None = None
    half: torch.dtype | None = None
    manual: bool = False
    compiled: str = ""
    tolerance: float = 1e-6


def _emulated() -> dict[str, Any]:
    # Lightning has a scaler on accelerators only
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]}


CONDITIONS: dict[str, Condition] = {
    "plain": Condition(),
    "accumulate": Condition(lambda: {"accumulate_grad_batches": 4}, accumulate=4),
    "clip": Condition(lambda: {"gradient_clip_val": 0.05}, clip=0.05),
    "bf16-mixed": Condition(lambda: {"precision": "bf16-mixed"}, half=torch.bfloat16, tolerance=1e-4),
    "16-mixed": Condition(_emulated, half=torch.float16, tolerance=1e-4),
    "manual": Condition(manual=True),
    "compile": Condition(compiled="part"),
    "compile-step": Condition(compiled="module"),
}
STRUCTURES = ("tuple", "dict", "hf")
