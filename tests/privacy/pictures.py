"""Training samples that can be told from anything else, and what to look for in files."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

SHAPE = (1, 4, 6)
MEAN, DEVIATION = 0.4, 0.3


class Pictures(Dataset):
    """Ten random pictures of each of four classes, in [0, 1]; every value is one that an 8-bit image can have.

    None is a fraction with a small denominator, as accuracies are.
    """

    def __init__(self, test: bool = False) -> None:
        generator = torch.Generator().manual_seed(1 if test else 0)
        self.targets = [label for label in range(4) for _ in range(10)]
        values = torch.tensor([value for value in range(1, 255) if math.gcd(value, 255) == 1])
        self.x = values[torch.randint(len(values), (40, *SHAPE), generator=generator)].float() / 255

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], self.targets[index]


class Search:
    """Looks for every one of some samples in files.

    Args:
        x: Samples in [0, 1], (N, ...).
    """

    def __init__(self, x: Tensor) -> None:
        raw = x.flatten(1)
        scaled = (raw - MEAN) / DEVIATION
        self.forms = {"raw": raw, "normalized": scaled, "8 bits": (raw * 255).round()}
        types = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
        encoded = [tensor.to(dtype) for tensor in (raw, scaled) for dtype in types]
        encoded.append(self.forms["8 bits"].to(torch.uint8))
        self.bytes = {row.contiguous().view(torch.uint8).numpy().tobytes() for rows in encoded for row in rows}
        self.texts = {repr(value) for tensor in (raw, scaled) for value in tensor.flatten().tolist()}

    def in_file(self, path: Path) -> list[str]:
        """How the samples are in the file, a line for each kind of place; an empty list if they are not."""
        content = path.read_bytes()
        found = [f"{path.name}: its bytes"] if any(sample in content for sample in self.bytes) else []
        if path.suffix == ".ckpt":
            return found + [f"{path.name}: {where}" for where in self.in_state(torch.load(path, weights_only=True))]
        # every value has so many digits that one is proof enough
        numbers = set(re.findall(r"-?\d\.\d{12,}(?:e-?\d+)?", content.decode(errors="ignore")))
        return found + ([f"{path.name}: its text"] if numbers & self.texts else [])

    def in_state(self, state: Any) -> Iterator[str]:
        """In tensors of any type, also as columns, to three digits; in texts and bytes."""
        for leaf in tree_leaves(state):
            if isinstance(leaf, Tensor):
                yield from self._in_tensor(leaf)
            elif isinstance(leaf, bytes) and any(sample in leaf for sample in self.bytes):
                yield "bytes in it"

    def _in_tensor(self, tensor: Tensor) -> Iterator[str]:
        width = self.forms["raw"].shape[1]
        if tensor.numel() == 0 or tensor.numel() % width:
            return
        for rows in (tensor.reshape(-1, width), tensor.reshape(width, -1).T):
            for name, samples in self.forms.items():
                distance = torch.cdist(rows.double(), samples.double(), p=float("inf"))
                if bool((distance < 1e-3 * samples.abs().max()).any()):
                    yield f"{name} in a tensor of shape {tuple(tensor.shape)}"

    def multiples_in(self, path: Path) -> list[str]:
        """Tensors of a checkpoint with a row that is a multiple of one sample, or of it and a constant."""
        width = self.forms["raw"].shape[1]
        samples = _directions(self.forms["raw"])
        found = []
        for leaf in tree_leaves(torch.load(path, weights_only=True)):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() and leaf.numel() % width == 0:
                likeness = (_directions(leaf.reshape(-1, width)) @ samples.T).abs()
                if bool((likeness > 0.9999).any()):
                    found.append(f"{path.name}: a tensor of shape {tuple(leaf.shape)}")
        return found


def _directions(rows: Tensor) -> Tensor:
    centred = rows.double() - rows.double().mean(1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    return torch.where(length > 1e-15, centred / length, 0)
