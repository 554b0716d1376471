"""Keyword arguments that penalties hand on from class to class, with their types."""

from pathlib import Path
from typing import Literal, TypedDict

from lightning_cl.callbacks._lambda import Schedule
from lightning_cl.callbacks._parameter_filter import Patterns


class MethodOptions(TypedDict, total=False):
    """Those of :class:`~lightning_cl.callbacks._method.MethodCallback`."""

    consolidate: Literal["auto", "manual"]
    select: Literal["last", "best"]
    state_path: str | Path | None


class KeptOptions(MethodOptions, total=False):
    """Those of :class:`~lightning_cl.callbacks._kept_penalty.KeptPenalty`."""

    include: Patterns
    exclude: Patterns
    normalize: Literal["max", "mean"] | None
    importance_dtype: Literal["float32", "bfloat16"]
    importance_path: str | Path | None


class PenaltyOptions(KeptOptions, total=False):
    """Those of :class:`~lightning_cl.callbacks._penalty.QuadraticPenalty`."""

    apply: Literal["gradient", "proximal"]
    lambda_schedule: Schedule
    unstable: Literal["warn", "error"]
