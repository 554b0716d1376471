"""Every method that is a quadratic penalty; lambda is 0 or not, the importance is its own."""

from collections.abc import Callable
from typing import Any

from lightning_cl import L2, L2SP, MAS, SI, RWalk

METHODS: dict[str, Callable[..., Any]] = {
    "si": lambda lambda_=50.0, **options: SI(lambda_, **options),
    "si, task": lambda lambda_=50.0, **options: SI(lambda_, path_gradient="task", **options),
    "mas": lambda lambda_=1.0, **options: MAS(lambda_, **options),
    "rwalk": lambda lambda_=2.0, **options: RWalk(lambda_, interval=3, **options),
    "l2": lambda lambda_=1.0, **options: L2(lambda_, **options),
    "l2, accumulated": lambda lambda_=1.0, **options: L2(lambda_, accumulate=True, **options),
    "l2sp": lambda lambda_=1.0, **options: L2SP(lambda_, beta=0.5, **options),
}
