"""A classification data set before it becomes a stream."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lightning_cl.errors import InputError
from lightning_cl.streams.data import Data


class SourceData(Data, Protocol):
    """Data of which parts can be served under other labels and transforms (``TensorData``, ``ItemData``)."""

    def view(self, indices: Tensor, targets: Tensor | None = None, **changes: Any) -> "SourceData":
        """Some of the samples, with other labels or constructor arguments."""
        ...

    def padded(self, pad: int) -> "SourceData":
        """The same images with ``pad`` zeros on each side."""
        ...


FEWEST_CLASSES = 1000  # so many classes may be there without a sample, in any data set


@dataclass(frozen=True)
class Domains:
    """Which domain each sample is of.

    Args:
        names: Names of the domains, in the order of their tasks.
        train: Domain of each training sample (N,) long.
        test: Of each test sample.
    """

    names: Sequence[str]
    train: Tensor
    test: Tensor


class Classification:
    """A data set with a training and a test part; every stream is built from one.

    Args:
        train: Training data, labels 0 .. C-1.
        test: Test data, same labels.
        class_names: Names of the C classes; by default ``"0"`` .. of the largest training label.
        domains: Which domain each sample is of, where that is known: ``domain_incremental`` has a task for each.
        tokenizer: What made the inputs of texts; runs save it, see :class:`~lightning_cl.streams.TextTokenizer`.

    Raises:
        InputError: If a label is not an integer from 0 to C-1; the message names its value and index.
    """

    def __init__(
        self,
        train: SourceData,
        test: SourceData,
        class_names: Sequence[str] | None = None,
        *,
        domains: Domains | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.domains, self.tokenizer = domains, tokenizer
        if class_names is None:
            class_names = numbered(check_labels(train.targets, None, "training"))
        self.train, self.test, self.class_names = train, test, [str(name) for name in class_names]
        check_labels(train.targets, len(self.class_names), "training")
        check_labels(test.targets, len(self.class_names), "test")
        check_inputs(train, test)
        if repeated := sorted(name for name, times in Counter(self.class_names).items() if times > 1):
            raise InputError(f"class name {repeated[0]!r} twice", "a name of its own for each class", "rename one")


def check_inputs(*parts: SourceData) -> None:
    """Refuse inputs that no model can take, or that differ between the parts, by the first sample of each.

    Raises:
        InputError: Naming their shape.
    """
    shapes = []
    for data in parts:
        batch: Any = data.batch(torch.zeros(1, dtype=torch.long)) if len(data) else None
        first = batch[0] if isinstance(batch, list | tuple) else None  # texts are mappings
        if not isinstance(first, Tensor):
            continue
        shape = tuple(first.shape[1:])
        if first.is_complex() or not shape or 0 in shape:
            raise InputError(
                f"inputs of shape {shape}", "numbers, at least one dimension of at least one", "reshape them"
            )
        shapes.append(shape)
    if len(set(shapes)) > 1:
        raise InputError(
            f"training inputs of shape {shapes[0]} and test inputs of {shapes[1]}", "one shape", "resize them"
        )


def numbered(labels: Tensor) -> list[str]:
    """Class names ``"0"``, ``"1"``, ... up to the largest label."""
    return [str(label) for label in range(int(labels.max()) + 1 if len(labels) else 0)]


def check_labels(labels: Any, n_classes: int | None, part: str) -> Tensor:
    """Labels as a long tensor (N,), if they are whole numbers from 0 to ``n_classes`` - 1.

    Raises:
        InputError: Naming the first wrong label and its index.
    """
    hint = "number the classes 0, 1, ... without gaps and check the data set's labels"
    expected = "an integer >= 0" if n_classes is None else f"an integer from 0 to {n_classes - 1}"
    try:
        given = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{part} labels that are no numbers ({error})", expected, hint) from error
    if given.dim() != 1:
        raise InputError(f"{part} labels of shape {tuple(given.shape)}", "one integer per sample, shape (N,)", hint)
    wrong = given < 0
    if n_classes is not None:
        wrong = wrong | (given >= n_classes)
    if given.is_floating_point():
        wrong = wrong | ~given.isfinite() | (given != given.round())
    most = FEWEST_CLASSES + given.numel() * 10
    if (
        n_classes is None and not wrong.any()
    ):  # no names say how many there are: memory is not filled with typing errors
        wrong, expected = (
            given >= most,
            f"an integer from 0 to {most - 1}, for {given.numel()} samples without class names",
        )
    if wrong.any():
        index = int(wrong.nonzero()[0])
        raise InputError(f"{part} label {given[index].item()!r} at index {index}", expected, hint)
    return given.long()
