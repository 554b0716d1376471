"""Data sets that no one would want, as a person's own code may give them."""

from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

CURRENT: dict[str, Any] = {}


def given(part: str) -> Any:
    """What a config's ``_target_`` finds."""
    return CURRENT[part]


class Items:
    """A map-style data set over lists; ``targets`` only if they are given."""

    def __init__(self, items: list[Any], targets: Any = None) -> None:
        self.items = items
        if targets is not None:
            self.targets = targets

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        shapes = [
            tuple(getattr(item[0], "shape", ())) if isinstance(item, tuple) and item else item for item in self.items
        ]
        return f"Items(inputs {shapes[:3]}, targets {getattr(self, 'targets', None)!r})"

    def __getitem__(self, index: int) -> Any:
        item = self.items[index]
        if isinstance(item, Exception):
            raise item
        return item


DTYPES = [torch.float32, torch.float64, torch.float16, torch.uint8, torch.int64, torch.bool, torch.complex64]
SHAPES = [(3,), (1, 4, 4), (), (0,), (2, 3, 4, 5), (1, 1, 1)]
SPECIAL = [float("nan"), float("inf"), -float("inf"), 1e38, -1e38, 0.0]
LABELS = st.one_of(
    st.sampled_from([-1, -(2**40), 10**6, 10**9, 2**40, 2**62, 0.5, float("nan"), float("inf"), 1e300]),
    st.sampled_from([None, "cat", "", True, [1], {"a": 1}, torch.tensor([1, 2]), torch.tensor(1.5), 10**30]),
)


@st.composite
def inputs(draw: Any, n: int) -> Tensor:
    """A tensor of n samples, perhaps of an odd shape, dtype or with odd values."""
    shape = draw(st.sampled_from(SHAPES[:2] * 8 + SHAPES))
    dtype = draw(st.sampled_from(DTYPES[:1] * 15 + DTYPES))
    x = torch.rand((n, *shape), generator=torch.Generator().manual_seed(n)).mul(200).to(dtype)
    if dtype.is_floating_point and x.numel() and draw(st.integers(0, 3)) == 0:
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    return x


@st.composite
def labels(draw: Any, n: int) -> list[Any]:
    """Labels 0 .. c-1, every class there if n is enough; sometimes one is no label."""
    classes = draw(st.sampled_from([1, 2, 3, 4, 4, 6, 6]))
    found: list[Any] = [i % classes for i in range(n)]
    if n and draw(st.integers(0, 4)) == 0:
        found[draw(st.integers(0, n - 1))] = draw(LABELS)
    return found


@st.composite
def datasets(draw: Any) -> Any:
    """Tensors, items, items with targets of their own; or what is no data set."""
    kind = draw(st.sampled_from(["tensors"] * 6 + ["items"] * 4 + ["targets"] * 3 + ["ragged", "raising", "nothing"]))
    n = draw(st.sampled_from([24] * 8 + [12, 0, 1, 2, 3]))
    x, y = draw(inputs(n)), draw(labels(n))
    if kind == "nothing":
        return draw(st.sampled_from([None, 3, "data", {}, [], {"a": 1}, iter([(1, 2)]), object(), torch.rand(4, 3)]))
    if kind == "tensors":
        try:
            return TensorDataset(x, torch.tensor(y))
        except (TypeError, ValueError, RuntimeError, OverflowError):
            return Items(list(zip(x, y, strict=True)))
    items: list[Any] = list(zip(x, y, strict=True))
    if kind == "ragged" and n:
        items[draw(st.integers(0, n - 1))] = draw(
            st.sampled_from([(torch.rand(7), 0), ("text", 0), (None, 0), (1.5, 0)])
        )
    if kind == "raising" and n:
        items[draw(st.integers(0, n - 1))] = draw(
            st.sampled_from([ValueError("no such sample"), KeyError("x"), OSError("cannot read"), 3, (), {"x": 1}])
        )
    if kind == "targets":
        other = draw(st.sampled_from([y, y, y, y[:-1], [*y, 0], torch.zeros(n, 2), "targets", 3, [None] * n]))
        return Items(items, other)
    return Items(items)
