"""Transforms that make a task's inputs its own: permutation, rotation, corruption.

Each is a picklable callable ``f(x, ids) -> x`` on float batches (N, C, H, W) with a ``name`` for its task. The
functions give one per task, for ``build_stream(transform=...)``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.functional.seeding import generator
from lightning_cl.streams.corruptions import KINDS, Corruption


class Permutation:
    """A fixed random order of all C*H*W input values (Goodfellow et al. 2013, permuted MNIST).

    The order is a function of (seed, task, number of values), computed on first use.

    Args:
        task: Number of the task; goes into the seed.
        seed: Seed of the order.
        identity: Leave the inputs as they are.
    """

    def __init__(self, task: int, seed: int = 0, identity: bool = False) -> None:
        self.task, self.seed, self.identity = task, seed, identity
        self.name = "original" if identity else f"permutation {task}"
        self._order: Tensor | None = None

    def __call__(self, x: Tensor, ids: Tensor) -> Tensor:
        """Permute each sample's values; any shape (N, ...)."""
        if self.identity:
            return x
        if self._order is None or len(self._order) != x[0].numel():
            self._order = torch.randperm(x[0].numel(), generator=generator(self.seed, "permutation", self.task))
        return x.flatten(1).index_select(1, self._order).view_as(x)


class Rotation:
    """Rotation about the centre, counter-clockwise, bilinear, zeros outside.

    Args:
        angle: In degrees.
    """

    def __init__(self, angle: float) -> None:
        self.angle, self.name = angle, f"rotation {angle:g}"

    def __call__(self, x: Tensor, ids: Tensor) -> Tensor:
        """Rotate images (N, C, H, W)."""
        if self.angle % 360 == 0:
            return x
        height, width = x.shape[-2:]
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        # grid coordinates run over [-1, 1] in both directions: the ratio keeps an oblong image from being sheared
        matrix = torch.tensor([[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]])
        grid = torch.nn.functional.affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
        return torch.nn.functional.grid_sample(x, grid, align_corners=False)


def permutation(n_tasks: int, seed: int = 0, first_identity: bool = False) -> list[Permutation]:
    """A random permutation of the inputs for every task.

    Args:
        n_tasks: Number of tasks.
        seed: Seed of the permutations.
        first_identity: Whether the first task has the original inputs.
    """
    return [Permutation(task, seed, identity=first_identity and task == 0) for task in range(n_tasks)]


def rotation(angles: Sequence[float]) -> list[Rotation]:
    """A rotation for every task.

    Args:
        angles: In degrees, one per task.
    """
    return [Rotation(angle) for angle in angles]


def corruption(
    kind: str | Sequence[str], severity: int | Sequence[int], seed: int = 0, clean_first: bool = False
) -> list[Corruption]:
    """A ladder of corruptions: for each kind, each severity in turn.

    Args:
        kind: One or several of `corruptions.KINDS`.
        severity: One or several from 0 (clean) to 5.
        seed: Seed of the noise, which is a function of (seed, kind, sample).
        clean_first: Whether a task of clean inputs comes before.

    Raises:
        InputError: For an unknown kind or severity.

    Example:
        >>> [step.name for step in corruption(["fog", "blur"], [1, 5], clean_first=True)]
        ['clean', 'fog 1', 'fog 5', 'blur 1', 'blur 5']
    """
    kinds = [kind] if isinstance(kind, str) else list(kind)
    severities = [severity] if isinstance(severity, int) else list(severity)
    if not kinds or not severities:
        raise InputError(
            f"kind={kind!r}, severity={severity!r}", "at least one of each", f"choose kinds from {', '.join(KINDS)}"
        )
    clean = [Corruption(kinds[0], 0, seed)] if clean_first else []
    return clean + [Corruption(one, step, seed) for one in kinds for step in severities]
